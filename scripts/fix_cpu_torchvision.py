"""CPU-only Linux environments: PyPI's torchvision wheel is linked against CUDA torch; its C++ ops do not load beside
a CPU torch and `import torchvision` (hence transformers, diffusers, open_clip) dies with
'operator torchvision::nms does not exist'.  Writes a start-up hook into the running venv's site-packages that declares
the missing op schemas just before torchvision is first imported.  Does nothing where torch has CUDA/ROCm or the ops load."""
import pathlib, sys, sysconfig

HOOK = '''\
import sys
class _Hook:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            try: _declare()
            except Exception: pass
        return None
def _declare():
    global _lib
    import importlib.util, pathlib, torch
    if torch.version.cuda or torch.version.hip: return
    spec = importlib.util.find_spec("torchvision")
    if spec is None: return
    for so in pathlib.Path(spec.origin).parent.glob("_C*.so"):
        try: torch.ops.load_library(str(so)); return          # real ops available: nothing to do
        except OSError: pass
    _lib = torch.library.Library("torchvision", "FRAGMENT")   # keep the reference
    for op in ("nms", "qnms"):
        _lib.define(op + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
sys.meta_path.insert(0, _Hook())
'''

def main():
    import torch
    if sys.platform != "linux" or torch.version.cuda or torch.version.hip:
        print("fix_cpu_torchvision: not needed"); return
    sp = pathlib.Path(sysconfig.get_paths()["purelib"])
    (sp / "_torchvision_cpu_hook.py").write_text(HOOK)
    (sp / "_torchvision_cpu_hook.pth").write_text("import _torchvision_cpu_hook\n")
    print("fix_cpu_torchvision: hook written to", sp)

if __name__ == "__main__": main()
