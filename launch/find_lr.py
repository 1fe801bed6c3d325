"""Finds the learning rate of every sequence length of a recipe; started on every rank by ``deepspeed``.

deepspeed launch/find_lr.py --config ds_configs/quickstart.yaml [key=value …] [--out FOLDER]
"""

from ds_pretrain.train.command import find_lr

if __name__ == "__main__":
    find_lr()
