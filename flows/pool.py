"""Set up Prefect's server before a worker starts: pool, queue, deployments, and the end of dead runs."""

import subprocess
import sys
from contextlib import suppress
from datetime import timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists

from flows import GPU, POOL

DEAD = "goal: dead flow runs"
# Three heartbeats of PREFECT_FLOWS_HEARTBEAT_FREQUENCY.
SILENCE = timedelta(seconds=90)
ALIVE = "prefect.flow-run.heartbeat"
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}


def main() -> None:
    """Create what is missing; a second call changes nothing."""
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        # The limit of a queue counts running flow runs: a server or worker that dies takes no slot with it.
        with suppress(ObjectAlreadyExists):
            client.create_work_queue(GPU, concurrency_limit=1, work_pool_name=POOL)
        if not client.read_automations_by_name(DEAD):
            client.create_automation(_dead_runs())
    subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"], check=True)


def _dead_runs() -> AutomationCore:
    """Mark a flow run as crashed that neither ended nor sent a heartbeat in time: its machine is lost."""
    return AutomationCore(
        name=DEAD,
        trigger=EventTrigger(
            after={ALIVE},
            expect={ALIVE, *ENDS},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat: killed with its machine")
        ],
    )


if __name__ == "__main__":
    main()
