"""Constants of batch-norm scale initialisation (Davis & Frank 2022)."""

from __future__ import annotations

import math
from typing import Final

SIGMA_ACT: Final[float] = math.sqrt(0.5 - 0.5 / math.pi)
"""sigma_act = std(max(0, z)) for z ~ N(0, 1) = sqrt(1/2 - 1/(2 pi)) = 0.5838.

E[max(0, z)^2] = E[z^2] / 2 = 1/2 by symmetry, and E[max(0, z)] = int_0^inf z exp(-z^2 / 2) dz / sqrt(2 pi)
= 1/sqrt(2 pi). A batch norm on the input pictures with scale gamma0 * sigma_act gives them the spread that the hidden
ReLU outputs have behind batch norms of scale gamma0. The authors' code rounds it to 0.58.
"""
