"""README.md is the markdown of nbs/index.ipynb, with links that hold from the top of the repository.
`--check` only says whether it is (exit 1 if not). nbdev_readme would need Quarto."""
import json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

def readme():
    cells = json.loads((ROOT/"nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(c["source"]).strip() for c in cells if c["cell_type"] == "markdown")
    return re.sub(r"(\]\()(?=images/|[\w/]+\.ipynb\))", r"\1nbs/", text)+"\n"

def main():
    path, text = ROOT/"README.md", readme()
    if "--check" not in sys.argv: path.write_text(text, encoding="utf-8"); print("README.md written")
    elif not path.exists() or path.read_text(encoding="utf-8") != text: sys.exit("README.md is not what nbs/index.ipynb says; run: python scripts/build_readme.py")

if __name__ == "__main__": main()
