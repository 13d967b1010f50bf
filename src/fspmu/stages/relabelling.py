"""New labels beside old ones: what forgets the one and learns the other."""

from dataclasses import replace

import torch
from torch import Tensor

from fspmu.data.images import Images
from fspmu.data.split import Split


def with_new_labels(images: Images, split: Split, new_labels: Tensor | None) -> tuple[Images, Split]:
    """Return both with a second copy of each image that has a new label, (N,) and -1 where none: the old one is forgotten, the new one retained.

    P(clean) of the old one is 0, or weights would have it learned under both labels.
    """
    if new_labels is None or not bool((new_labels >= 0).any()):
        return images, split
    rows = (new_labels >= 0).nonzero().squeeze(1)
    labels = torch.cat([images.given_labels, new_labels[rows].to(images.given_labels.device)])
    copies = [f"{images.ids[row]} (relabelled)" for row in rows.tolist()]
    both = images.subset(torch.cat([torch.arange(len(images)), rows]))
    yes, no, sure = torch.ones(len(rows), dtype=torch.bool), torch.zeros(len(rows), dtype=torch.bool), torch.ones(len(rows))
    clean = split.clean_probability.index_fill(0, rows, 0.0)
    split = Split(torch.cat([split.retain, yes]), torch.cat([split.forget, no]), torch.cat([clean, sure.to(clean.dtype)]))
    return replace(both, given_labels=labels, ids=[*images.ids, *copies]), split
