"""Pages of the site that lie elsewhere: at the top of the repository, and those that doxygen makes."""

import re
import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}


_DOXYGEN = "build/doxygen"  # OUTPUT_DIRECTORY of Doxyfile


def _relink(text: str, to_top: str, to_docs: str) -> str:
    """Links of a page that lies elsewhere in the repository than on the site."""
    for source, page in _PAGES.items():
        text = text.replace(f"]({to_top}{source}", f"]({to_docs}{page}")
    return re.sub(r"\]\(docs/", "](", text) if not to_top else text


def on_files(files: Files, config: MkDocsConfig) -> Files:
    top = Path(config.config_file_path).parent
    for source, page in _PAGES.items():
        text = _relink((top / source).read_text(), "", "")
        files.append(File.generated(config, page, content=text))
    subprocess.run(["doxygen", "docs/Doxyfile"], cwd=top, check=True)
    for path in sorted((top / _DOXYGEN / "cpp").rglob("*.*")):
        name = path.relative_to(top / _DOXYGEN).as_posix()
        file = File(name, str(top / _DOXYGEN), config.site_dir, use_directory_urls=False)
        file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: object, config: MkDocsConfig, files: Files) -> str:
    return _relink(markdown, "../", "")
