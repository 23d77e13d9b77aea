"""A callback: write the validation loss after each evaluation, and the end of the run, to a file.

python train.py quickstart 'extensions=[examples/notify.py]' 'train.callbacks=[notify]'
"""

import lmjax
from lmjax.training.events import Event


def notify(event: Event) -> None:
    """Called after each update, evaluation, checkpoint and rollback, and at the end."""
    if event.kind in ("evaluation", "end"):
        with open(event.run_dir / "notes.txt", "a", encoding="utf-8") as notes:
            print(f"{event.kind} after update {event.update}: {event.values['val_loss']:.3f} nats", file=notes)


lmjax.register_callback("notify", notify)
