"""`draw` on the device: against the distribution, and a single row like one of many."""

import numpy as np
import torch
from scipy.stats import chisquare

from stillhouse.stages.teacher.draws_in_engine import draw

V = 152_064


def test_counts_fit_the_distribution() -> None:
    logits_V = torch.randn(V, generator=torch.Generator().manual_seed(0)) * 3
    rows = 512
    seeds, positions = torch.arange(rows, device="cuda"), torch.arange(rows, device="cuda") % 7
    drawn = draw(logits_V.cuda().expand(rows, V), seeds, positions, 256).cpu().numpy().ravel()
    p_V = torch.softmax(logits_V.double(), 0).numpy()
    order = np.argsort(-p_V)
    group = np.empty(V, dtype=int)
    group[order] = np.minimum(np.log2(np.arange(V) + 1).astype(int), 15)
    seen, wanted = np.bincount(group[drawn], minlength=16), np.bincount(group, weights=p_V) * len(drawn)
    assert chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-3


def test_a_row_alone_is_drawn_as_among_others() -> None:
    """torch sums one row by another algorithm, whose order of additions changes from run to run: what has no mass could
    then be drawn."""
    logits_RV = torch.randn(4, V, generator=torch.Generator().manual_seed(1)).cuda()
    logits_RV[:, V // 2 :] = -torch.inf
    seeds, positions = torch.arange(4, device="cuda"), torch.arange(4, device="cuda")
    together = draw(logits_RV, seeds, positions, 1024)
    alone = torch.cat([draw(logits_RV[r : r + 1], seeds[r : r + 1], positions[r : r + 1], 1024) for r in range(4)])
    assert int(together.max()) < V // 2
    assert (together != alone).float().mean() < 1e-3  # how a sum is grouped depends on the number of rows


def test_the_same_on_cpu_and_device() -> None:
    logits_RV = torch.randn(8, V, generator=torch.Generator().manual_seed(2)) * 2
    seeds, positions = torch.arange(8), torch.arange(8)
    here = draw(logits_RV, seeds, positions, 256)
    there = draw(logits_RV.cuda(), seeds.cuda(), positions.cuda(), 256).cpu()
    assert (here != there).float().mean() < 1e-2
