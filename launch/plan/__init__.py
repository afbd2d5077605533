"""What a training config will cost, from formulas alone: ``ovtrain plan``; docs/scaling.md.

``step`` counts what an optimizer step is made of, ``launch.ranks`` what a rank of it holds;
``estimate`` turns both into memory and time on a cluster, ``layouts`` compares the ways to lay a
run out, ``job`` puts it together, ``text`` prints it.
"""

from launch.plan.step import Plan, make_plan, plan_lines

__all__ = ["Plan", "make_plan", "plan_lines"]
