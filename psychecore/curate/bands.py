"""The bands of MinHash LSH: which rows are worth comparing.

Two rows with Jaccard similarity J agree in each minimum of their signatures with probability J, so in a band of r
minima with J^r, and in at least one of b bands with 1 - (1 - J^r)^b. With 21 bands of 6: 0.998 at J = 0.8, 0.28 at
0.5, 0.015 at 0.3. (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Pairs = npt.NDArray[np.int64]


def bands_for(threshold: float, recall: float, permutations: int) -> tuple[int, int]:
    """(bands, minima per band): the longest band that still finds a pair at the threshold with `recall`.

    Raises ValueError where no split of that many permutations does.
    """
    for rows in range(permutations, 0, -1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= recall:
            return bands, rows
    raise ValueError(
        f"{permutations} permutations cannot find pairs at threshold {threshold} with recall {recall}: use more"
    )


def candidate_pairs(signatures_NP: npt.NDArray[np.uint32], bands: int, rows: int) -> Iterator[Pairs]:
    """Pairs (i, j) of rows that are equal in some band, each pair once, in blocks of shape [pairs, 2].

    Rows with equal keys are neighbours after sorting: pairs at distance 1 in that order come first, then those at
    distance 2 of groups with three rows, and so on. A pair that met in an earlier band is left out.
    """
    keys_BN = np.zeros((bands, len(signatures_NP)), np.uint64)
    for band in range(bands):
        for column in range(band * rows, (band + 1) * rows):
            keys_BN[band] = (keys_BN[band] ^ signatures_NP[:, column]) * np.uint64(0xC4CEB9FE1A85EC53)
            keys_BN[band] ^= keys_BN[band] >> np.uint64(29)
    for band in range(bands):
        order = np.argsort(keys_BN[band], kind="stable")
        ordered = keys_BN[band, order]
        start = np.arange(len(order))
        for distance in range(1, len(order)):
            start = start[start + distance < len(order)]
            start = start[ordered[start] == ordered[start + distance]]
            if not len(start):
                break
            pairs = np.stack([order[start], order[start + distance]], axis=1)
            met = np.zeros(len(pairs), bool)
            for earlier in range(band):
                met |= keys_BN[earlier, pairs[:, 0]] == keys_BN[earlier, pairs[:, 1]]
            if not met.all():
                yield pairs[~met]
