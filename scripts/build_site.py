"""The documentation site without Quarto: nbdev's own processing of the notebooks, then smalldocs on the same _quarto.yml."""
import re, shutil, subprocess, sys
from pathlib import Path

def page_names(folder):
    "Quarto would honour nbdev's `output-file: core.html`; smalldocs names a page after its file, so 00_core.ipynb becomes core.ipynb."
    sidebar = folder/"sidebar.yml"
    for f in sorted(folder.rglob("*.ipynb")):
        new = f.with_name(re.sub(r"^\d+[a-zA-Z0-9]*_", "", f.name))
        if new == f: continue
        sidebar.write_text(re.sub(rf"(?<!\w){re.escape(f.name)}", new.name, sidebar.read_text(encoding="utf-8")), encoding="utf-8")
        f.rename(new)

def exported_and_imports_only():
    "For its API pages nbdev also runs cells that import something and go on to compute, without the cells before them; those it can do without."
    import ast
    import nbdev.processors as p
    usual, shown = p._do_eval, {"export", "exports", "exporti", "exec_doc"}
    plain = lambda cell: all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in cell.parsed_())
    p._do_eval = lambda cell: usual(cell) and (cell.directives_.keys() & shown or plain(cell) or p._is_showdoc(cell))

def main():
    exported_and_imports_only()
    from nbdev.config import get_config
    from nbdev.doclinks import _build_modidx
    from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
    from nbdev.serve import proc_nbs
    cfg = get_config(); shutil.rmtree(cfg.config_path/"_proc", ignore_errors=True)
    refresh_quarto_yml(); _build_modidx(); nbdev_sidebar()
    processed = proc_nbs(n_workers=0); page_names(processed)
    subprocess.run([str(Path(sys.executable).with_name("smalldocs")), "render", "-q", str(processed)], check=True)
    shutil.rmtree(cfg.doc_path, ignore_errors=True); shutil.move(processed/cfg.doc_path.name, cfg.doc_path)
    print(*sorted(str(p.relative_to(cfg.doc_path)) for p in cfg.doc_path.rglob("*.html")))

if __name__ == "__main__": main()
