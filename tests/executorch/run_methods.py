"""Runs methods of norms.pte in a process of its own, and saves what they return.

    python run_methods.py TASK

TASK has "calls", (method, inputs, threads) each, "load" and "out": where a list goes, of the outputs
of each call, or of the words of its error. EARLY is loaded before groupnorm.executorch.load().
"""

import sys

import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime
from kinds import EARLY, PATH

import groupnorm.executorch

task = torch.load(sys.argv[1])
program = Runtime.get().load_program(PATH)
program.load_method(EARLY)
if task["load"]:
    groupnorm.executorch.load()
results = []
for method, inputs, threads in task["calls"]:
    portable_lib._unsafe_reset_threadpool(threads)
    try:
        results.append(program.load_method(method).execute(inputs))
    except RuntimeError as error:
        results.append(str(error))
torch.save(results, task["out"])
