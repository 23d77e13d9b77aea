"""The files of a study: a table in Markdown, the results as JSON, and a picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lmjax.config import UserError
from lmjax.config.errors import one_line
from lmjax.display.console import Console
from lmjax.display.figures import save
from lmjax.system.files import write_text
from lmjax.system.json_files import write_json


def write_study(
    out: Path, name: str, *, text: str, results: Any, draw: Callable[[], Figure], show: Callable[[Console], None]
) -> None:
    """Write NAME.md, NAME.json and NAME.png to `out`, show the results, and print the paths.

    A picture that cannot be drawn costs a line.

    Args:
        out: The folder.
        name: The name of the files.
        text: The table.
        results: The results as a JSON value.
        draw: Draws the picture.
        show: Prints the results.

    Raises:
        UserError: The folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / f"{name}.md", text)
        write_json(out / f"{name}.json", results)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another place with --out") from None
    written = [f"{name}.md", f"{name}.json"]
    with Console() as console:
        try:
            save(draw(), out / f"{name}.png")
            written.append(f"{name}.png")
        except Exception as error:  # the results matter more
            console.event(f"the picture cannot be drawn ({type(error).__name__}: {one_line(error)})")
        show(console)
        for file in written:
            console.event(str(out / file))
