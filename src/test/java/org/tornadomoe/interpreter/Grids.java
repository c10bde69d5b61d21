package org.tornadomoe.interpreter;

import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.WorkerGrid1D;
import uk.ac.manchester.tornado.api.exceptions.TornadoExecutionPlanException;

/** Grids, and the run of a graph with one. */
final class Grids {
    private Grids() {}

    static WorkerGrid1D of(int global, int local) {
        WorkerGrid1D grid = new WorkerGrid1D(global);
        grid.setLocalWork(local, 1, 1);
        return grid;
    }

    /** Runs a graph whose one task is called t. */
    static void run(TaskGraph graph, int global, int local) throws TornadoExecutionPlanException {
        GridScheduler grids = new GridScheduler(graph.getTaskGraphName() + ".t", of(global, local));
        try (TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot())) {
            plan.withGridScheduler(grids).execute();
        }
    }
}
