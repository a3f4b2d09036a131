"""The data sets that bapps_eval reads: what they measure, how large they are, where they come from, how well the reader was tried."""

from __future__ import annotations

from dataclasses import dataclass

OWN, PART, SYNTHETIC = ("the set itself, in part", "trees of the same layout; genuine images as a subset",
                        "trees of the same layout")


@dataclass(frozen=True)
class KnownSet:
    """A published set.

    Args:
        name: as results call it.
        task: a key of :data:`bapps_eval.dataset.TASKS`.
        measures: what people were asked.
        size: items of the whole set.
        source: who publishes it.
        license: as its page states it; "see its page" where that was not checked.
        layout: files by which its folder is recognized.
        tried: what the reader was tried on.
        paper: reference.
    """

    name: str
    task: str
    measures: str
    size: str
    source: str
    license: str
    layout: str
    tried: str
    paper: str


SETS = (
    KnownSet("bapps-2afc-val", "2afc", "which of two patches is closer to the reference", "36,344 triplets",
             "richzhang/PerceptualSimilarity", "BSD-2 (code); images: see its page", "2afc/val/FAMILY/", SYNTHETIC,
             "Zhang et al., CVPR 2018"),
    KnownSet("bapps-jnd-val", "jnd", "whether two patches look the same", "9,600 pairs", "richzhang/PerceptualSimilarity",
             "BSD-2 (code); images: see its page", "jnd/val/FAMILY/", SYNTHETIC, "Zhang et al., CVPR 2018"),
    KnownSet("tid2013", "mos", "quality of distorted images, 24 kinds", "3,000 images, 25 references", "ponomarenko.info",
             "research", "mos_with_names.txt", PART, "Ponomarenko et al., Signal Processing: Image Communication 30, 2015"),
    KnownSet("kadid10k", "mos", "quality of distorted images, 25 kinds", "10,125 images, 81 references", "database.mmsp-kn.de",
             "research; references: Pixabay license", "dmos.csv, images/", SYNTHETIC, "Lin, Hosu, Saupe, QoMEX 2019"),
    KnownSet("kadid10k-remade", "mos", "the same scores, images made again from recovered references",
             "9,600 images, 80 references", "made by the user", "as KADID-10k", "dmos.csv, ref/, images/", OWN,
             "Lin, Hosu, Saupe, QoMEX 2019"),
    KnownSet("csiq", "mos", "quality of distorted images, 6 kinds", "866 images, 30 references", "Oklahoma State University",
             "see its page", "src_imgs/, dst_imgs/", SYNTHETIC, "Larson, Chandler, Journal of Electronic Imaging 19(1), 2010"),
    KnownSet("live", "mos", "quality of distorted images, 5 kinds", "779 images, 29 references", "live.ece.utexas.edu",
             "free with its copyright notice", "refimgs/, dmos_realigned.mat", PART, "Sheikh et al., IEEE TIP 15(11), 2006"),
    KnownSet("pipal", "mos", "quality of restored images (training part)", "23,200 images, 200 references",
             "HaomingCai/PIPAL-dataset", "see its page", "Train_Ref/, Train_Label/", SYNTHETIC, "Gu et al., ECCV 2020"),
    KnownSet("cid22-val", "mos", "quality of compressed images from medium to lossless", "4,292 images, 49 references",
             "cloudinary.com/labs/cid22", "CC BY-SA 4.0", "CID22_validation_set.csv", SYNTHETIC,
             "Sneyers, Ben Baruch, Vaxman, 2023"),
    KnownSet("konjnd1k", "jnd", "from which compression level on a difference is seen (JPEG, BPG)", "1,008 sources and codecs",
             "database.mmsp-kn.de", "see its page", "subjective_ratings.csv", SYNTHETIC, "Lin et al., IEEE Access 10, 2022"),
    KnownSet(
        "aic3", "mos", "distortion in JND units, high-fidelity compression", "600 images, 10 references", "JPEG AIC-3, EPFL",
        "see its page", "decoded/info.csv, original/", SYNTHETIC, "Testolina et al., arXiv 2410.09501"),
    KnownSet("aic4", "mos", "distortion in JND units, with confidence intervals", "300 images, 5 references",
             "jpeg-aic/JPEG-AIC-4-datasets", "see its page", "JPEG_AIC_reconstructed_jnd_scores.csv", SYNTHETIC,
             "Jenadeleh et al., arXiv 2504.06301"),
    KnownSet("nights-test", "2afc", "which of two generated images is more similar to a third", "1,824 triplets (test)",
             "data.csail.mit.edu/nights", "see its page", "data.csv, ref/, distort/", SYNTHETIC, "Fu et al., NeurIPS 2023"),
    KnownSet("pieapp-test", "mos", "perceptual error from pairwise preferences (test part)", "600 images, 40 references",
             "prashnani/PerceptualImageError", "see its page", "test_reference_list.txt, labels/", SYNTHETIC,
             "Prashnani et al., CVPR 2018"),
    KnownSet(
        "clic2021-2afc-valid", "2afc", "which of two compressed crops is closer to the original", "some 5,200 questions",
        "compression.cc", "see its page", "clicYYYY_perceptual_PART_answers.csv", SYNTHETIC, "CLIC challenge, 2021 to 2024"),
    KnownSet("raid", "mos", "perceived rotation, translation, scaling and noise", "960 images, 24 references",
             "paudauo/BBDD_Affine_Transformations", "CC BY 4.0", "responses.csv", SYNTHETIC, "Daudén-Oliver et al., 2025"))
