"""DeepSpeed: the JSON of every stage, the engine, stage switches and checkpoints. The only importer of deepspeed."""
