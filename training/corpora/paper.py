"""What the paper says of its data: Tables I and II, the splits. Source: Zhang et al., Sec. IV-A."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CubeCounts:
    """One row of Table I."""

    volumes: int  # used for pre-training
    small: int  # cubes of this scale from each volume
    medium: int
    large: int

    @property
    def totals(self) -> tuple[int, int, int]:
        """Small, medium and large cubes of the whole data set, as Table I prints them."""
        return self.volumes * self.small, self.volumes * self.medium, self.volumes * self.large


# Source: Table I. The caption does not name the order of its triples; 2:1:1 with "large, medium
# and small 1:1:2" (Sec. III-C) makes the first one small.
TABLE_1 = {
    "luna16": CubeCounts(623, 32, 16, 16),
    "lits2017": CubeCounts(111, 64, 32, 32),
    "brats2018": CubeCounts(760, 32, 16, 16),  # 190 patients, four sequences each
    "msd_heart": CubeCounts(30, 64, 32, 32),  # 20 training and 10 test volumes
}


@dataclass(frozen=True)
class Usage:
    """One row of Table II."""

    pretraining: bool
    fine_tuning: bool
    test: bool


# Source: Table II; for LUNA2016, LiTS2017 and MSD its check marks did not survive in the text at
# hand and follow from Sec. IV-A and IV-C. LiTS has a test set "so that the trained model can be
# further tested", but none of the five tasks uses it.
TABLE_2 = {
    "luna16": Usage(pretraining=True, fine_tuning=True, test=True),
    "lits2017": Usage(pretraining=True, fine_tuning=False, test=False),
    "brats2018": Usage(pretraining=True, fine_tuning=True, test=True),
    "msd_heart": Usage(pretraining=True, fine_tuning=False, test=False),
    "mmwhs": Usage(pretraining=False, fine_tuning=True, test=True),
    "adni": Usage(pretraining=False, fine_tuning=True, test=True),
}


@dataclass(frozen=True)
class SplitSize:
    """Subjects of one stratum for training and for the test."""

    train: int
    test: int


# Source: Sec. IV-A. Keys are the strata, "" for all subjects together. The BraTS numbers by grade
# are ours: the paper gives 190 and 95, which are exactly two and one third of 210 HGG and 75 LGG.
SPLIT_SIZES = {
    "luna16": {"": SplitSize(623, 265)},
    "lits2017": {"": SplitSize(111, 19)},
    "brats2018": {"HGG": SplitSize(140, 70), "LGG": SplitSize(50, 25)},
    "msd_heart": {"": SplitSize(30, 0)},
    "mmwhs": {"CT": SplitSize(16, 4), "MR": SplitSize(16, 4)},
    "adni": {"AD": SplitSize(37, 10), "NC": SplitSize(45, 11)},
}
