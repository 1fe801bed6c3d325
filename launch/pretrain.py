"""Trains a recipe, or continues its run; started on every rank by ``deepspeed``.

deepspeed launch/pretrain.py --config ds_configs/quickstart.yaml [key=value …]
"""

from ds_pretrain.train.command import main

if __name__ == "__main__":
    main()
