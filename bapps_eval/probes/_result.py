"""The result of every probe: one schema, saved as JSON, and its images."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cpips._utils import notebook
from cpips._utils.io import atomic, finite, read_text
from cpips._utils.optional import import_pandas
from cpips.errors import ModelError
from cpips.images import to_pil

KEYS = ("probe", "metric", "signature", "settings", "result")


@dataclass(frozen=True)
class Finding:
    """A weakness found by a probe.

    Attributes:
        kind: one word with hyphens, of :data:`KINDS`.
        value, limit: what was measured, and from where on it counts as a weakness; in the unit that ``text`` names.
        text: a sentence for people.
    """

    kind: str
    value: float
    limit: float
    text: str


KINDS = {
    "nan-gradient": "its gradient is not finite somewhere",
    "no-gradient": "it has no gradient, or one that is zero everywhere: nothing can be optimized for it",
    "metamer": "an image at nearly zero distance is visibly different from the reference",
    "ignores-colour": "it is insensitive to chroma",
    "destroys": "an image optimized for it is worse than before",
    "outplayed": "another metric changes a lot while this one is constant",
    "fragile": "an invisible change flips its rankings",
    "shift-sensitive": "a shift by one pixel gets a larger distance than a clearly visible distortion",
    "warp-sensitive": "a slight rotation or scaling gets a larger distance than a clearly visible distortion",
    "not-equivariant": "its distance changes if both images are rotated, flipped or shifted alike",
    "blind": "clearly visible distortions get nearly no distance",
    "not-monotone": "it decreases while a distortion increases",
    "saturated": "it hardly increases from strong to stronger distortions",
    "asymmetric": "it depends on the order of the two images",
    "nonzero": "equal images have a nonzero distance",
    "negative": "a distance is below that of equal images",
    "triangle": "the triangle inequality is violated",
    "not-finite": "a distance is NaN or infinite",
    "noisy": "noise of one gray level is below its rounding errors",
}


@dataclass(frozen=True)
class ProbeResult:
    """The measurements of one probe for one metric.

    Attributes:
        probe: name of the probe, of :data:`bapps_eval.probes.PROBES`.
        metric, signature: of the metric.
        settings: all that the numbers depend on besides the images.
        result: the numbers; ``findings`` among them is a list of :class:`Finding` as dicts, empty if nothing was found.
        pictures: by their captions, ``(3,H,W)`` in [0,1]; not part of the JSON.

    Example:
        >>> from bapps_eval.probes import ProbeResult, invariance
        >>> invariance("mse", torch.rand(1, 3, 64, 64)).save("invariance.json")
        PosixPath('invariance.json')
        >>> ProbeResult.load("invariance.json").metric
        'mse'
    """

    probe: str
    metric: str
    signature: str
    settings: dict[str, Any]
    result: dict[str, Any]
    pictures: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def findings(self) -> list[Finding]:
        """Weaknesses, in the order found."""
        return [Finding(**{**found, "value": float(found["value"])}) for found in self.result["findings"]]

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` of the findings: kind, value, limit, text.

        Raises:
            CpipsError: pandas is not installed.
        """
        return import_pandas().DataFrame([dataclasses.asdict(finding) for finding in self.findings],
                                         columns=["kind", "value", "limit", "text"])

    def _repr_html_(self) -> str:
        rows = [[finding.kind, finding.value, finding.limit, finding.text] for finding in self.findings]
        return notebook.panel(f"probe {self.probe} of {self.metric}", [("weaknesses found", len(rows))],
                              body=notebook.table(["kind", "value", "limit", "what it means"], rows) if rows else "",
                              pictures=[(caption, to_pil(pixels)) for caption, pixels in self.pictures.items()],
                              notes=[self.signature])

    def to_dict(self) -> dict[str, Any]:
        """The schema, as JSON has it: infinities and NaN as strings."""
        return finite({key: getattr(self, key) for key in KEYS})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the JSON file atomically."""
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with atomic(path) as stream:
            stream.write(text.encode())
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ProbeResult":
        """What :meth:`save` wrote, without the images; numbers that JSON lacks stay strings that ``float()`` reads.

        Raises:
            ModelError: the file is no probe's result.
        """
        try:
            found = json.loads(read_text(path))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelError(f"{path} is not JSON ({error}): give a file that `cpips probe NAME -o FILE` wrote") from error
        if not isinstance(found, dict) or set(found) != set(KEYS) or not _well_formed(found):
            raise ModelError(f"{path} is not the result of a probe: expected the keys {', '.join(KEYS)}, as "
                             "`cpips probe NAME -o FILE` writes them")
        return cls(**found)


def _well_formed(found: dict[str, Any]) -> bool:
    """Whether the parts have the types that :class:`ProbeResult` says, and findings what pages print of them."""
    result = found["result"]
    if not (all(isinstance(found[key], str) for key in ("probe", "metric", "signature"))
            and isinstance(found["settings"], dict) and isinstance(result, dict) and isinstance(result.get("findings"), list)):
        return False
    try:
        findings = [Finding(**{**each, "value": float(each["value"]), "limit": float(each["limit"])})
                    for each in result["findings"]]
    except (TypeError, ValueError, KeyError):
        return False
    return all(each.kind in KINDS and isinstance(each.text, str) for each in findings)
