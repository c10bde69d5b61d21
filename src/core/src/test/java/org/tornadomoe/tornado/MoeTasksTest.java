package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.Arena;
import java.nio.BufferOverflowException;
import java.util.Arrays;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task7;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

class MoeTasksTest {
    private static final RandomLayer LAYER = RandomLayer.of(5, 2, 26, 14, 9, 3).on("interpreter:0");

    @Test
    void aModelAsOnePlanIsItsLayersOneByOne() {
        float[] hidden = LAYER.hidden(9, 1);
        try (SmallModel model = SmallModel.of(LAYER, 32, Int8Scheme.W8A8_CHANNEL)) {
            float[][] asOne = model.asOnePlan(hidden, false, 9, 4, 9);
            float[] oneByOne = model.oneByOne(new TornadoPortableExperts(), hidden, 9);
            assertThat(asOne[0]).isEqualTo(oneByOne);
            assertThat(asOne[2]).isEqualTo(oneByOne);
            // A token's result doesn't depend on the others'.
            assertThat(asOne[1])
                    .isEqualTo(Arrays.copyOf(oneByOne, 4 * LAYER.config().hiddenDim()));
            assertThat(asOne[0]).isNotEqualTo(hidden);
        }
    }

    @Test
    void everySchemeRunsInAGraph() {
        for (Int8Scheme scheme : Int8Scheme.values()) {
            float[] hidden = LAYER.hidden(5, 2);
            TornadoExperts chosen =
                    scheme.quantizesActivations() ? new TornadoPortableExperts() : new TornadoPanelExperts();
            try (SmallModel model = SmallModel.of(LAYER, 2, scheme)) {
                assertThat(model.asOnePlan(hidden, false, 5)[0])
                        .describedAs(scheme.name())
                        .isEqualTo(model.oneByOne(chosen, Arrays.copyOf(hidden, 9 * 26), 5));
            }
        }
    }

    /** A graph of TornadoVM's with room for the code of one layer. */
    @Test
    void aFullGraphIsToldOf() {
        TaskGraph full = new TaskGraph("full") {
            private int layers;

            // The last of a layer's kernels.
            @Override
            public <A, B, C, D, E, F, G> TaskGraph task(
                    String id, Task7<A, B, C, D, E, F, G> code, A a, B b, C c, D d, E e, F f, G g) {
                if (id.endsWith("combine") && layers++ > 0) {
                    throw new BufferOverflowException();
                }
                return super.task(id, code, a, b, c, d, e, f, g);
            }
        };
        FloatArray hidden = new FloatArray(9 * 26);
        FloatArray output = new FloatArray(9 * 26);
        try (Int8Experts experts = Int8Quantizer.quantize(LAYER, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                MoeTasks moe = new MoeTasks(full, new GridScheduler(), LAYER.config())) {
            moe.append("first", experts, hidden, output);
            assertThatThrownBy(() -> moe.append("second", experts, hidden, output))
                    .isInstanceOf(UnsupportedOperationException.class)
                    .hasMessage("graph: TornadoVM's code of one task graph, 8 KB, is full after 1 layers of"
                            + " TornadoDp4aExperts, and what else is in it");
        }
    }

    @Test
    void layersOutliveAModelsPlan() {
        LayerChecks.layersOutliveAModelsPlan("interpreter:0");
    }

    private static Thread closing = new Thread();

    /** A task that begins to close a layer, and tells whether that waits. */
    static void close(IntArray waits) {
        closing.start();
        Thread.State state = closing.getState();
        while (state != Thread.State.WAITING && state != Thread.State.TERMINATED) {
            Thread.onSpinWait();
            state = closing.getState();
        }
        waits.set(0, state == Thread.State.WAITING ? 1 : 2);
    }

    @Test
    @Timeout(60)
    void noLayerIsClosedWhileAPlanRuns() throws Exception {
        IntArray waits = new IntArray(1);
        TaskGraph graph = new TaskGraph("closing")
                .task("close", MoeTasksTest::close, waits)
                .transferToHost(DataTransferMode.EVERY_EXECUTION, waits);
        try (Int8Experts experts = Int8Quantizer.quantize(LAYER, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                MoeTasks moe = new MoeTasks(graph, new GridScheduler(), LAYER.config())) {
            closing = new Thread(new TornadoPortableExperts().load(LAYER.config(), experts)::close);
            TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot());
            moe.launchOn(plan);
            moe.execute(plan);
            closing.join();
        }
        assertThat(waits.get(0)).isEqualTo(1);
    }

    @Test
    void plansAreClosedWithTheTasks() {
        TaskGraph graph = new TaskGraph("closed");
        TornadoExecutionPlan plan;
        try (MoeTasks moe = new MoeTasks(graph, new GridScheduler(), LAYER.config())) {
            plan = new TornadoExecutionPlan(graph.snapshot());
            moe.launchOn(plan);
            moe.execute(plan);
        }
        assertThatThrownBy(plan::execute).hasMessage("the plan is closed");
    }

    @Test
    void layersOfAClosedPlanLeaveNothingOnTheDevice() {
        TaskGraph graph = new TaskGraph("left");
        TornadoExecutionPlan plan;
        FloatArray hidden = new FloatArray(9 * 26);
        FloatArray between = new FloatArray(9 * 26);
        FloatArray output = new FloatArray(9 * 26);
        try (MoeTasks moe = new MoeTasks(graph, new GridScheduler(), LAYER.config());
                Int8Experts experts = Int8Quantizer.quantize(LAYER, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            graph.transferToDevice(DataTransferMode.EVERY_EXECUTION, moe.header(), hidden);
            moe.append("a", experts, hidden, between);
            moe.append("b", experts, between, output);
            graph.transferToHost(DataTransferMode.UNDER_DEMAND, between);
            graph.transferToHost(DataTransferMode.EVERY_EXECUTION, output);
            moe.setTokens(9);
            plan = new TornadoExecutionPlan(graph.snapshot());
            moe.launchOn(plan);
            moe.execute(plan);
            assertThat(plan.getCurrentDeviceMemoryUsage()).isPositive();
        }
        assertThat(plan.getCurrentDeviceMemoryUsage()).isZero();
    }

    /** One graph for many tokens and one for single ones, as prompts and generated tokens have it, weights once. */
    @Test
    void theSameLayersInTwoGraphsOfAPlan() {
        LayerChecks.theSameLayersInTwoGraphsOfAPlan("interpreter:0");
    }

    @Test
    void productsAreSumsOfTheirRows() {
        LayerChecks.productsAreSumsOfTheirRows("interpreter:0", Int8Scheme.W8A16_CHANNEL, 1e-6);
        LayerChecks.productsAreSumsOfTheirRows("interpreter:0", Int8Scheme.W8A8_CHANNEL, 1.5e-2);
    }

    @Test
    void layersOfAnotherGraphAreAppendedAgainOnly() {
        GridScheduler grids = new GridScheduler();
        FloatArray hidden = new FloatArray(9 * 26);
        FloatArray output = new FloatArray(9 * 26);
        try (MoeTasks moe = new MoeTasks(new TaskGraph("first"), grids, LAYER.config());
                Int8Experts experts = Int8Quantizer.quantize(LAYER, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            moe.append("a", experts, hidden, output);
            MoeTasks again = new MoeTasks(moe, new TaskGraph("second"));
            assertThat(again.header()).isSameAs(moe.header());
            assertThat(again.kernels()).isEqualTo(moe.kernels());
            assertThatThrownBy(() -> again.append("a", experts, hidden, output))
                    .isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("expected appendAgain");
            try (Arena arena = Arena.ofConfined()) {
                Int8Tensor square = Int8Tensor.allocate(arena, 1, 26, 26);
                assertThatThrownBy(() -> again.appendProduct("p", square, Int8Scheme.W8A16_CHANNEL, hidden, output))
                        .isInstanceOf(IllegalStateException.class)
                        .hasMessage("expected layers alone, since weights are those of another graph");
            }
            assertThatThrownBy(() -> again.appendAgain("a", 1, experts, hidden, output))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessage("like: expected a layer of 1, got 1");
        }
    }

    @Test
    void refusesWhatItCannotAppend() {
        TaskGraph graph = new TaskGraph("refusals");
        FloatArray hidden = new FloatArray(9 * 26);
        try (MoeTasks moe = new MoeTasks(graph, new GridScheduler(), LAYER.config());
                Int8Experts experts = Int8Quantizer.quantize(LAYER, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            assertThatThrownBy(() -> moe.append("a", experts, hidden, hidden))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessage("output: expected another array than hidden");
            assertThatThrownBy(() -> moe.append("a", experts, hidden, new FloatArray(233)))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessage("output: expected at least 234 elements, got 233");
            try (Arena arena = Arena.ofConfined()) {
                Int8Tensor tall = Int8Tensor.allocate(arena, 1, 27, 26);
                assertThatThrownBy(() -> moe.appendProduct("p", tall, Int8Scheme.W8A16_CHANNEL, hidden, hidden))
                        .isInstanceOf(IllegalArgumentException.class)
                        .hasMessage("y: expected at least 243 elements, got 234");
                Int8Tensor square = Int8Tensor.allocate(arena, 1, 26, 26);
                assertThatThrownBy(() -> moe.appendProduct("p", square, Int8Scheme.W8A16_CHANNEL, hidden, hidden))
                        .isInstanceOf(IllegalArgumentException.class)
                        .hasMessage("y: expected another array than x");
                assertThatThrownBy(() ->
                                moe.appendProduct("p", square, Int8Scheme.W8A16_GROUP, hidden, new FloatArray(9 * 26)))
                        .isInstanceOf(IllegalArgumentException.class)
                        .hasMessage("scheme: expected W8A8_CHANNEL or W8A16_CHANNEL, got W8A16_GROUP");
            }
            assertThatThrownBy(() -> moe.setTokens(10))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessage("tokens: expected 1 to 9, got 10");
        }
        assertThatThrownBy(() -> new MoeTasks(
                        graph, new GridScheduler(), LAYER.on("ptx:9").config()))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("ptx:9");
        assertThatThrownBy(() -> new MoeTasks(
                        graph, new GridScheduler(), LAYER.on("cuda:0,cuda:1").config()))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageStartingWith("config: expected one device, got cuda:0,cuda:1: a task graph runs on one");
    }
}
