package example;

import java.nio.file.Path;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.MoeTasks;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.WorkerGrid1D;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;

/** CHECKPOINT: a layer among a program's own tasks; its output stays on the device for the next task. */
class InTaskGraph {
    private static final int TOKENS = 4;

    /** The residual connection: hidden += output. */
    static void add(KernelContext context, FloatArray output, FloatArray hidden) {
        int i = context.globalIdx;
        hidden.set(i, hidden.get(i) + output.get(i));
    }

    public static void main(String[] args) throws Exception {
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(Path.of(args[0]))) {
            ExpertWeights weights = checkpoint.layer(0);
            int values = TOKENS * weights.config().hiddenDim();
            FloatArray hidden = new FloatArray(values);
            FloatArray output = new FloatArray(values);
            for (int i = 0; i < values; i++) {
                hidden.set(i, (float) Math.sin(i));
            }
            TaskGraph graph = new TaskGraph("model").transferToDevice(DataTransferMode.EVERY_EXECUTION, hidden);
            GridScheduler grids = new GridScheduler();
            try (Int8Experts experts = Int8Quantizer.quantize(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                    MoeTasks moe = new MoeTasks(graph, grids, weights.config().withMaxNumTokens(TOKENS))) {
                moe.append("moe", experts, hidden, output);
                graph.task("add", InTaskGraph::add, new KernelContext(), output, hidden)
                        .transferToHost(DataTransferMode.UNDER_DEMAND, output)
                        .transferToHost(DataTransferMode.EVERY_EXECUTION, hidden);
                grids.addWorkerGrid("model.add", new WorkerGrid1D(values));
                TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot());
                moe.launchOn(plan);
                moe.setTokens(TOKENS);
                moe.execute(plan);
                System.out.println("on " + moe.device() + ": " + hidden.get(0) + " " + hidden.get(1));
            }
        }
    }
}
