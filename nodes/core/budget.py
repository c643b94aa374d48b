"""The daily budget: what was spent today (UTC, by the database's clock), and what may still be.

Asked inside the transaction that claims a job, so that parallel jobs cannot pass it together.
"""

import sqlalchemy as sa

from .errors import BudgetExceeded
from .ledger_schema import NOW, jobs
from .states import AT_RUNCOMFY, NOT_BINDING, JobState

DAY_S = 86400
CENT = 0.005
_RUNNING = [state.value for state in (JobState.SUBMITTING, *AT_RUNCOMFY)]
_PAID = [state.value for state in (JobState.COMPLETED, JobState.EXPIRED, JobState.UNKNOWN)]


def check(conn: sa.Connection, origin: str, this_usd: float, limit_usd: float) -> None:
    """Raise BudgetExceeded if ``this_usd`` more would pass the limit of the day."""
    now = float(conn.execute(sa.select(NOW)).scalar_one())
    running = sa.case((jobs.c.state.in_(_RUNNING), jobs.c.price_usd), else_=0.0)
    real = sa.func.coalesce(jobs.c.cost_usd, 0.0)  # without a clip, where RunComfy says so
    likely = sa.func.coalesce(jobs.c.cost_usd, jobs.c.price_usd)
    spent = sa.case(
        (jobs.c.state.in_(_PAID), likely),
        (jobs.c.state.in_([state.value for state in NOT_BINDING]), real),
        else_=0.0,
    )
    running_usd, spent_usd = conn.execute(
        sa.select(sa.func.sum(running), sa.func.sum(spent)).where(
            jobs.c.origin == origin,
            jobs.c.model_id != "",  # collected by its id: paid elsewhere
            jobs.c.created_at >= now - now % DAY_S,
        )
    ).one()
    running_usd, spent_usd = float(running_usd or 0), float(spent_usd or 0)
    if spent_usd + running_usd + this_usd > limit_usd + CENT:
        raise BudgetExceeded(
            f"This costs about ${this_usd:.2f} and would pass today's budget of ${limit_usd:.2f}: "
            f"${spent_usd:.2f} is spent, ${running_usd:.2f} is running. Nothing was sent for it. "
            "Raise RUNCOMFY_DAILY_BUDGET_USD, or go on after 00:00 UTC."
        )
