import time
from tests.study.inline import Inline, grid_of, run_inline

def test_x(toy_study, tmp_path):
    t=time.time()
    grid = grid_of(tmp_path, toy_study)
    print("grid", time.time()-t); t=time.time()
    ex=Inline()
    print(run_inline(grid, tmp_path/"s", ex)); print("run", time.time()-t, ex.ran, ex.steps)
    import subprocess
    print(subprocess.run(["find",str(tmp_path/"s")],capture_output=True,text=True).stdout)
    print((tmp_path/"s/cells/lora-R8-n8/final_seed0.json").read_text()[-6000:])
