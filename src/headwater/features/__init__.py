"""Features: declared once, compiled to one plan, folded and assembled by one pair of kernels.

``definitions`` (what) → ``plan`` (layout and programs) → ``fold_kernel`` (log → state) and
``assemble`` (state → ``float32[n, d]``). ``fold.Fold`` drives the first, ``state`` keeps its result.
"""
