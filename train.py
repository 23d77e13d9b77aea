"""Train a model: `python train.py --help` explains. The same as `lmjax train`."""

from lmjax.cli.main import train_main

if __name__ == "__main__":
    train_main()
