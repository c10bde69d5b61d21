package org.tornadomoe.interpreter;

import java.util.Arrays;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.ImmutableTaskGraph;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.WorkerGrid1D;
import uk.ac.manchester.tornado.api.exceptions.TornadoExecutionPlanException;

/** Grids, and plans with them. */
final class Grids {
    private Grids() {}

    static WorkerGrid1D of(int global, int local) {
        WorkerGrid1D grid = new WorkerGrid1D(global);
        grid.setLocalWork(local, 1, 1);
        return grid;
    }

    /** A plan whose tasks, named graph.task and separated by spaces, have the same grid. */
    static TornadoExecutionPlan plan(String tasks, int global, int local, TaskGraph... graphs) {
        GridScheduler grids = new GridScheduler();
        for (String task : tasks.split(" ", -1)) {
            grids.addWorkerGrid(task, of(global, local));
        }
        ImmutableTaskGraph[] snapshots =
                Arrays.stream(graphs).map(TaskGraph::snapshot).toArray(ImmutableTaskGraph[]::new);
        return new TornadoExecutionPlan(snapshots).withGridScheduler(grids);
    }

    /** Runs a graph whose one task is called t. */
    static void run(TaskGraph graph, int global, int local) throws TornadoExecutionPlanException {
        try (TornadoExecutionPlan plan = plan(graph.getTaskGraphName() + ".t", global, local, graph)) {
            plan.execute();
        }
    }
}
