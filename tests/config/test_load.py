"""Files, merging and overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_pretrain.config import Recipe, dump_recipe, load_recipe, parse_recipe
from ds_pretrain.errors import RecipeError

BASE = """\
model: {architecture: gpt2}
data: {train: data/x}
curriculum: {total_steps: 100}
optimizer: {lr: 1e-3}
"""
STAGES = BASE.replace("100}", "100, stages: [{step: 0, seq_len: 64}, {step: 50, seq_len: 128}]}")


class Loader:
    """Loads YAML texts, each from a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *texts: str, overrides: tuple[str, ...] = ()) -> Recipe:
        files = [self.folder / f"{index}.yaml" for index in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_text(text, encoding="utf-8")
        return load_recipe(files, overrides)


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    return Loader(tmp_path)


def given_keys(section: Any, *names: str) -> list[str]:
    return [name for name in names if getattr(section, name) is not None]


def test_later_files_win_and_keep_the_rest(load: Loader) -> None:
    recipe = load(BASE, "run: {name: a, seed: 1}", "run: {name: b}")
    assert (recipe.run.name, recipe.run.seed, recipe.optimizer.lr) == ("b", 1, 1e-3)


@pytest.mark.parametrize(
    "later", ["data: {train: [b]}", "data: {train: {path: b}}", "data: {train: b}", "data: {train: [{path: b}]}"]
)
@pytest.mark.parametrize("first", ["[a]", "{path: a}", "a"])
def test_sources_are_replaced_whatever_their_form(load: Loader, first: str, later: str) -> None:
    assert [source.path for source in load(BASE.replace("data/x", first), later).data.train] == ["b"]


TOTALS = ("total_steps", "total_tokens", "total_epochs")


def test_a_total_in_a_later_file_replaces_the_other(load: Loader) -> None:
    assert given_keys(load(BASE, "curriculum: {total_tokens: 7}").curriculum, *TOTALS) == ["total_tokens"]


@pytest.mark.parametrize("override", ["curriculum.total_epochs=1.5", "curriculum={total_epochs: 1.5}"])
def test_a_total_on_the_command_line_replaces_the_other(load: Loader, override: str) -> None:
    curriculum = load(BASE, overrides=(override,)).curriculum
    assert given_keys(curriculum, *TOTALS) == ["total_epochs"]
    assert curriculum.total_epochs == 1.5


def test_two_totals_on_one_command_line_contradict(load: Loader) -> None:
    with pytest.raises(RecipeError, match="found total_tokens and total_epochs"):
        load(BASE, overrides=("curriculum.total_tokens=5", "curriculum.total_epochs=1"))


def test_an_alternative_set_to_null_replaces_nothing(load: Loader) -> None:
    recipe = load(BASE, overrides=("curriculum.total_tokens=null",))
    assert given_keys(recipe.curriculum, *TOTALS) == ["total_steps"]


def test_pacing_replaces_stages_and_back(load: Loader) -> None:
    pacing = "curriculum.pacing={kind: linear, start_seq_len: 64, fraction: 0.3}"
    assert load(STAGES, overrides=(pacing,)).curriculum.stages is None
    paced = BASE.replace("100}", "100, pacing: {start_seq_len: 64, fraction: 0.3}}")
    assert load(paced, "curriculum: {stages: [{step: 0}]}").curriculum.pacing is None
    recipe = load(paced, overrides=("curriculum.pacing.steps=10",))
    assert recipe.curriculum.pacing is not None
    assert given_keys(recipe.curriculum.pacing, "fraction", "steps", "tokens") == ["steps"]
    assert recipe.curriculum.pacing.start_seq_len == 64


def test_pretrained_replaces_architecture(load: Loader) -> None:
    model = load(BASE, overrides=("model.pretrained=models/a",)).model
    assert (model.architecture, model.pretrained) == (None, "models/a")


@pytest.mark.parametrize("override", ["schedule.warmup.tokens=5", "schedule.warmup={tokens: 5}"])
def test_a_warmup_override_replaces_default_and_stated(load: Loader, override: str) -> None:
    for text in (BASE, BASE + "schedule: {warmup: {steps: 3, max_steps: 9}}"):
        warmup = load(text, overrides=(override,)).schedule.warmup
        assert given_keys(warmup, "tokens", "steps", "fraction") == ["tokens"]
    assert warmup.max_steps == 9


def test_a_dumped_recipe_takes_overrides_like_its_source(load: Loader) -> None:
    warmup = load(dump_recipe(load(BASE)), overrides=("schedule.warmup.steps=4",)).schedule.warmup
    assert given_keys(warmup, "tokens", "steps", "fraction") == ["steps"]


def test_list_items_lists_and_mappings_as_overrides(load: Loader) -> None:
    overrides = (
        "curriculum.stages.1.grad_clip=2",
        "optimizer.betas=[0.8, 0.9]",
        "model.config={n_layer: 2}",
        "optimizer.lr=2e-4",
        "data.train=[data/mine]",
        "data.validation=data/mine-val",
    )
    recipe = load(STAGES, overrides=overrides)
    assert recipe.curriculum.stages is not None
    assert [stage.grad_clip for stage in recipe.curriculum.stages] == [None, 2.0]
    assert recipe.curriculum.stages[1].seq_len == 128
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert recipe.model.config == {"n_layer": 2}
    assert recipe.optimizer.lr == 2e-4
    assert (recipe.data.train[0].path, recipe.data.validation[0].path) == ("data/mine", "data/mine-val")


ESCAPED = "\\x24{oc.env:DS_PRETRAIN_TEST_SECRET}"
PLAIN = "${oc.env:DS_PRETRAIN_TEST_SECRET}"


def test_no_environment_value_gets_into_a_recipe(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_PRETRAIN_TEST_SECRET", "s3cret")
    by_file = load(BASE + f"run: {{output_dir: '{PLAIN}'}}\ntracking: {{wandb: {{notes: \"{ESCAPED}\"}}}}")
    by_override = load(BASE, overrides=(f"run.output_dir={PLAIN}", f'tracking.wandb.notes="{ESCAPED}"'))
    for recipe in (by_file, by_override):
        assert recipe.run.output_dir == PLAIN
        assert recipe.tracking.wandb.notes == PLAIN
        assert "s3cret" not in dump_recipe(recipe)
    through = BASE + f'run: "\\x24{{oc.create:{{output_dir: {PLAIN}}}}}"'
    with pytest.raises(RecipeError) as caught:
        load(through, overrides=("optimizer.lr=" + PLAIN, "run.seed.x=1"))
    assert "s3cret" not in str(caught.value)


def test_a_lone_dollar_brace_is_text(load: Loader) -> None:
    assert load(BASE, overrides=("tracking.wandb.notes=costs ${5",)).tracking.wandb.notes == "costs ${5"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"text", "is not a recipe: a mapping of keys is needed at the top"),
        (b"5", "is not a recipe: a mapping of keys is needed at the top"),
        (b"- a", "is not a recipe: a mapping of keys is needed at the top"),
        (b"run: {}\nrun: {}", "is not valid YAML: found duplicate key run (line 2, column 1)"),
        (b"run: {name: a, name: b}", "is not valid YAML: found duplicate key name (line 1, column 16)"),
        (b"\xff\xfe", "is not UTF-8 text (byte 0)"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe([file])
    assert [str(problem) for problem in caught.value.problems] == [reason]
    assert str(file) in str(caught.value)


def test_broken_yaml_names_the_line(load: Loader) -> None:
    with pytest.raises(RecipeError, match=r"is not valid YAML: .*line 2"):
        load("run: {}\na: b: c")


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(files)
    assert [str(problem) for problem in caught.value.problems] == [f"{file}: there is no such file" for file in files]


def test_no_file_at_all() -> None:
    with pytest.raises(RecipeError, match="no recipe given"):
        load_recipe([])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("foo", "found override 'foo'; allowed: key.path=value, e.g. optimizer.lr=1e-3"),
        ("=3", "found override '=3'; allowed: key.path=value, e.g. optimizer.lr=1e-3"),
        (
            "curriculum.stages.5.seq_len=3",
            "curriculum.stages.5.seq_len: the override 'curriculum.stages.5.seq_len=3' cannot be applied: "
            "the list has no such item",
        ),
        ("optimiser.lr=1", "optimiser: unknown key"),
        ("run.name=", "run.name: found null; allowed: text (in quotes where it looks like a number)"),
    ],
)
def test_bad_overrides(load: Loader, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(STAGES, overrides=(override,))
    assert [str(problem)[: len(message)] for problem in caught.value.problems] == [message]


def test_a_bad_override_hides_no_other_problem(load: Loader) -> None:
    with pytest.raises(RecipeError) as caught:
        load(BASE.replace("1e-3", "fast"), overrides=("foo", "run.seed=-1"))
    assert [problem.path for problem in caught.value.problems] == ["", "run.seed", "optimizer.lr"]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\ue000"), max_size=12)
NUMBERLIKE = st.sampled_from(
    ["1e3", "1_0", "0x1F", "12:30", ".5e1", "+1", "yes", "null", "~", "1.", "nan", ".inf", "${a}"]
)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT


@settings(max_examples=50)
@given(
    notes=TEXT | NUMBERLIKE,
    lr=st.floats(min_value=1e-300, max_value=1e300),
    tokens=st.integers(1, 2**70),
    config=st.dictionaries(TEXT.filter(bool), VALUES | NUMBERLIKE | st.lists(VALUES, max_size=2), max_size=3),
)
def test_dump_and_load_give_an_equal_recipe(
    tmp_path_factory: pytest.TempPathFactory, notes: str, lr: float, tokens: int, config: dict[str, Any]
) -> None:
    recipe = parse_recipe(
        {
            "model": {"architecture": "gpt2", "config": config},
            "data": {"train": "x"},
            "curriculum": {"total_tokens": tokens, "stages": [{"step": 0, "grad_clip": lr}]},
            "optimizer": {"lr": lr},
            "tracking": {"wandb": {"notes": notes, "tags": [notes]}},
        }
    )
    file = tmp_path_factory.mktemp("dump") / "config.yaml"
    file.write_text(dump_recipe(recipe), encoding="utf-8", newline="")
    assert load_recipe([file]) == recipe


def test_a_few_aliases_cannot_stand_for_more_than_there_is_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path = tmp_path / "laughs.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(RecipeError, match="stands for more than 100,000 values"):
        load_recipe([path])


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "a: " + "[" * 40 + "]" * 40, "a: " + "[" * 5000])
def test_what_nests_without_end_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match="nests deeper than 32 levels"):
        load_recipe([path])
