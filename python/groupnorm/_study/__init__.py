"""What ``python -m groupnorm study`` measures: norms, batch sizes and groups on real images.

``plan`` lists the runs, ``data``, ``network`` and ``training`` make one, ``timing`` times a step;
``summary``, ``figures`` and ``report`` say what came of it. Nothing here touches a file: that is
``_cli/study.py``. Everything needs torch.
"""
