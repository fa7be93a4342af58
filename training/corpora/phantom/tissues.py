"""What phantoms are made of: tissues, their HU, and their MR relaxation times.

Sources: HU and relaxation times at 1.5 T are round numbers from the ranges that textbooks and
reviews agree on (Stanisz et al. 2005; de Bazelaire et al. 2004; Bottomley et al. 1984); the
spread between subjects and the texture are ours, wide enough that tissues overlap.
"""

from typing import NamedTuple

import numpy as np


class Tissue(NamedTuple):
    """One tissue: CT number and MR properties."""

    name: str
    hu: float  # mean, HU, without contrast agent
    hu_spread: float  # standard deviation between subjects, HU
    hu_texture: float  # standard deviation inside a subject, HU
    t1_ms: float
    t2_ms: float
    density: float  # of protons, relative to water
    mr_texture: float  # standard deviation of the signal inside a subject, as a fraction


# The position in this table is the value in a label map.
_TABLE = (
    Tissue("air", -1000, 0, 0, 1000, 10, 0.0, 0.0),
    Tissue("skin", 20, 10, 8, 600, 40, 0.70, 0.06),
    Tissue("fat", -102, 8, 9, 260, 80, 0.92, 0.05),
    Tissue("visceral_fat", -98, 8, 12, 270, 78, 0.90, 0.06),
    Tissue("muscle", 55, 6, 9, 900, 45, 0.85, 0.06),
    Tissue("cortical_bone", 820, 120, 90, 300, 2, 0.08, 0.1),
    Tissue("marrow", 190, 60, 60, 420, 60, 0.70, 0.10),
    Tissue("cartilage", 105, 12, 15, 1000, 35, 0.70, 0.05),
    Tissue("spinal_cord", 36, 4, 4, 850, 85, 0.75, 0.05),
    Tissue("csf", 7, 4, 4, 4200, 1800, 1.00, 0.04),
    Tissue("lung", -850, 35, 28, 1200, 30, 0.12, 0.20),
    Tissue("airway", -995, 2, 0, 1000, 10, 0.0, 0.0),
    Tissue("airway_wall", 10, 15, 10, 800, 45, 0.70, 0.05),
    Tissue("lung_vessel", 42, 6, 5, 1400, 190, 0.70, 0.08),
    Tissue("nodule", 20, 35, 18, 1000, 70, 0.80, 0.06),
    Tissue("ground_glass", -560, 70, 45, 1100, 60, 0.40, 0.10),
    Tissue("left_ventricle", 42, 4, 4, 1400, 220, 0.95, 0.05),
    Tissue("right_ventricle", 42, 4, 4, 1400, 200, 0.95, 0.05),
    Tissue("left_atrium", 42, 4, 4, 1400, 220, 0.95, 0.05),
    Tissue("right_atrium", 42, 4, 4, 1400, 200, 0.95, 0.05),
    Tissue("myocardium", 50, 5, 6, 1000, 50, 0.85, 0.06),
    Tissue("heart_wall", 48, 5, 6, 1000, 50, 0.85, 0.06),
    Tissue("aorta", 42, 4, 4, 1400, 220, 0.95, 0.05),
    Tissue("pulmonary_artery", 42, 4, 4, 1400, 200, 0.95, 0.05),
    Tissue("pulmonary_vein", 42, 4, 4, 1400, 220, 0.95, 0.05),
    Tissue("vein", 42, 4, 4, 1400, 190, 0.95, 0.06),
    Tissue("vessel_wall", 45, 5, 5, 950, 50, 0.80, 0.05),
    Tissue("esophagus", 38, 6, 8, 900, 50, 0.85, 0.06),
    Tissue("liver", 58, 7, 7, 590, 46, 0.80, 0.05),
    Tissue("liver_lesion", 40, 12, 9, 950, 80, 0.85, 0.10),
    Tissue("liver_vessel", 42, 5, 4, 1350, 150, 0.90, 0.05),
    Tissue("gallbladder", 10, 6, 3, 2500, 400, 0.95, 0.03),
    Tissue("spleen", 50, 5, 6, 1050, 80, 0.88, 0.05),
    Tissue("kidney_cortex", 34, 4, 6, 970, 80, 0.86, 0.05),
    Tissue("kidney_medulla", 26, 4, 6, 1400, 100, 0.90, 0.06),
    Tissue("pancreas", 40, 8, 12, 600, 48, 0.82, 0.08),
    Tissue("stomach_wall", 42, 6, 8, 850, 55, 0.84, 0.06),
    Tissue("stomach_content", 22, 18, 18, 1800, 200, 0.92, 0.12),
    Tissue("bowel_wall", 42, 6, 8, 850, 55, 0.84, 0.06),
    Tissue("bowel_content", 30, 20, 22, 1500, 150, 0.90, 0.15),
    Tissue("gas", -960, 15, 10, 1000, 10, 0.0, 0.0),
    Tissue("gray_matter", 38, 2, 2, 980, 98, 0.86, 0.03),
    Tissue("white_matter", 28, 2, 2, 640, 78, 0.74, 0.03),
    Tissue("deep_nuclei", 37, 2, 2, 850, 84, 0.81, 0.04),
    Tissue("hippocampus", 37, 2, 2, 1000, 100, 0.86, 0.03),
    Tissue("wm_lesion", 22, 3, 3, 1050, 122, 0.84, 0.08),
    Tissue("edema", 20, 4, 4, 1130, 123, 0.85, 0.12),
    Tissue("tumor_core", 24, 6, 6, 1900, 150, 0.88, 0.18),
    Tissue("enhancing_tumor", 36, 6, 6, 1200, 116, 0.86, 0.14),
    Tissue("eye", 10, 4, 3, 4000, 900, 0.97, 0.03),
)

TISSUES: dict[str, int] = {tissue.name: value for value, tissue in enumerate(_TABLE)}

# HU with contrast agent, where they differ. "portal": 70 s after injection; "arterial": cardiac CT.
PHASES: dict[str, dict[str, float]] = {
    "plain": {},
    "portal": {
        "liver": 108, "liver_lesion": 78, "liver_vessel": 148, "spleen": 118, "pancreas": 95,
        "kidney_cortex": 172, "kidney_medulla": 150, "aorta": 150, "vein": 150, "muscle": 62,
        "left_ventricle": 150, "right_ventricle": 150, "left_atrium": 150, "right_atrium": 150,
        "pulmonary_artery": 150, "pulmonary_vein": 150, "lung_vessel": 140, "myocardium": 108,
        "heart_wall": 105, "stomach_wall": 80, "bowel_wall": 85, "vessel_wall": 60, "nodule": 60,
    },
    "arterial": {
        "left_ventricle": 345, "left_atrium": 350, "aorta": 345, "pulmonary_vein": 350,
        "right_ventricle": 265, "right_atrium": 250, "pulmonary_artery": 300, "vein": 210,
        "lung_vessel": 260, "myocardium": 108, "heart_wall": 105, "muscle": 60, "liver": 72,
        "liver_vessel": 90, "spleen": 120, "kidney_cortex": 170, "stomach_wall": 60,
    },
}  # fmt: skip


def tissue_values(field: str) -> np.ndarray:
    """Return one column of the tissue table, (K,) float32, indexed by label value."""
    return np.array([getattr(tissue, field) for tissue in _TABLE], dtype=np.float32)


def tissue_mask(*names: str) -> np.ndarray:
    """Return a (256,) boolean table that is true for the named tissues; index it with labels."""
    mask = np.zeros(256, dtype=bool)
    mask[[TISSUES[name] for name in names]] = True
    return mask
