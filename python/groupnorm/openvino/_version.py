"""Which versions of OpenVINO this works with."""

import re
import warnings

OLDEST = (2026, 0)
NEWEST = (2026, 4)


def check_version(version: str) -> None:
    """Refuses an OpenVINO that is too old, and warns of one that nobody has tried.

    Raises:
        ImportError: it is older than OLDEST.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        return  # built from a source without tags
    number = (int(found[1]), int(found[2]))
    if number < OLDEST:
        raise ImportError(
            f"openvino: must be {'.'.join(map(str, OLDEST))} or later; got {version}: "
            "pip install --upgrade openvino"
        )
    if number > NEWEST:
        warnings.warn(
            f"groupnorm.openvino was tested with openvino up to {'.'.join(map(str, NEWEST))}; "
            f"this is {version}. Compare results, or install a version that was tested.",
            RuntimeWarning,
            stacklevel=3,
        )
