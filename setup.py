"Everything comes from settings.ini; the notebooks that `necomimi` runs headless travel inside the wheel."
import shutil
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
c = ConfigParser(delimiters=["="]); c.read(here/"settings.ini", encoding="utf-8"); c = c["DEFAULT"]
status = {"1": "1 - Planning", "2": "2 - Pre-Alpha", "3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}
extras = {k: c[f"{k}_requirements"].split() for k in ("mini", "generation", "widgets", "batch", "cluster", "lab", "dev")}
extras["all"] = sorted({r for k, v in extras.items() if k != "dev" for r in v})

class BuildWithNotebooks(build_py):
    "Copies nbs/runs/ (notebooks, grids) and nbs/explore.ipynb to necomimi/_notebooks/ of the wheel (a source checkout reads them in place)."
    def run(self):
        super().run()
        out = Path(self.build_lib)/c["lib_path"]/"_notebooks"; out.mkdir(parents=True, exist_ok=True)
        for nb in (*(here/"nbs"/"runs").glob("*.ipynb"), here/"nbs"/"explore.ipynb"): shutil.copy(nb, out)
        shutil.copytree(here/"nbs"/"runs"/"grids", out/"grids", dirs_exist_ok=True)

setup(
    name=c["lib_name"], version=c["version"], description=c["description"], keywords=c["keywords"].split(),
    author=c["author"], author_email=c["author_email"], url=c["git_url"], project_urls={"Documentation": c["doc_host"] + c["doc_baseurl"]},
    license="Apache-2.0", classifiers=[f"Development Status :: {status[c['status']]}", "Programming Language :: Python :: 3", "Topic :: Scientific/Engineering"],
    packages=find_packages(include=[c["lib_path"], c["lib_path"] + ".*"]), include_package_data=True,
    package_data={c["lib_path"]: ["weights/**/*", "_notebooks/*.ipynb", "_notebooks/grids/*.yaml"]},
    install_requires=c["requirements"].split(), extras_require=extras, python_requires=">=" + c["min_python"],
    long_description=(here/"README.md").read_text(encoding="utf-8") if (here/"README.md").exists() else "", long_description_content_type="text/markdown",
    entry_points={"console_scripts": c["console_scripts"].split(), "nbdev": [f"{c['lib_path']}={c['lib_path']}._modidx:d"]},
    cmdclass={"build_py": BuildWithNotebooks}, zip_safe=False,
)
