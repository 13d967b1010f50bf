"""What `fspmu report` and `fspmu review` can be asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional


@dataclass(frozen=True)
class Report:
    """Write the page of a repair: what was found and what changed, in one file that asks nothing of the network."""

    run: Annotated[Positional[Path], "RUN"]
    """Folder of a finished `fspmu unlearn` or `fspmu repair`."""
    compare: tuple[Path, ...] = ()
    """Folders of other repairs, whose numbers are set beside this one's."""
    out: Path | None = None
    """File to write. None: report.html in the folder."""
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""


@dataclass(frozen=True)
class Review:
    """Serve the page of a repair on this machine alone, and save each decision at once: review.json and corrections.csv in the folder."""

    run: Annotated[Positional[Path], "RUN"]
    """Folder of a finished `fspmu unlearn` or `fspmu repair`."""
    port: int = 0
    """Port of 127.0.0.1. 0: any that is free."""
    no_browser: bool = False
    """Print the address, open no browser."""
    compare: tuple[Path, ...] = ()
    """Folders of other repairs, whose numbers are set beside this one's."""
