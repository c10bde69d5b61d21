package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.host.DeviceThread;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.cuda.RecordingDriver;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.TornadoExecutionResult;
import uk.ac.manchester.tornado.api.exceptions.TornadoExecutionPlanException;

/** Who asks TornadoVM, which keeps a queue for every thread that does. */
class TornadoMoeKernelTest {
    private static final RandomLayer LAYER = RandomLayer.of(5, 2, 40, 24, 8, 7);
    private static final int M = 3;

    /** A plan of nothing. */
    private static final class Watched extends TornadoExecutionPlan {
        final List<Thread> executed = Collections.synchronizedList(new ArrayList<>());
        final List<Thread> closed = Collections.synchronizedList(new ArrayList<>());

        Watched() {
            super(new TaskGraph("nothing").snapshot());
        }

        @Override
        public TornadoExecutionResult execute() {
            executed.add(Thread.currentThread());
            return super.execute();
        }

        @Override
        public void close() throws TornadoExecutionPlanException {
            closed.add(Thread.currentThread());
            super.close();
        }
    }

    @Test
    void oneThreadExecutesAPlanForAllAndClosesIt() throws InterruptedException {
        Watched plan = new Watched();
        DeviceThread own = new DeviceThread("one plan's", 1);
        try (Int8Experts experts = Int8Quantizer.quantize(LAYER, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            TornadoMoeKernel kernel =
                    new RecordedPart(new RecordingDriver(), 0, 10, 100, LAYER.config(), experts, own, plan).kernel;
            for (int caller = 0; caller < 3; caller++) {
                Thread.ofVirtual()
                        .start(() -> kernel.forward(
                                MemorySegment.ofArray(LAYER.hidden(M, 1)),
                                M,
                                MemorySegment.ofArray(new float[M * 40]),
                                null,
                                null))
                        .join();
            }
            kernel.close();
        }
        assertThat(plan.executed).hasSize(3).containsOnly(own.thread());
        assertThat(plan.closed).containsExactly(own.thread());
        assertThat(own.thread().isAlive()).isFalse();
    }

    @Test
    void aLayerHasAThreadAndPartsOfLayersHaveTheirs() {
        MoeOptions one = MoeOptions.DEFAULT.withBackend("triton").withDevices(List.of("interpreter:0"));
        assertThat(threadsOf(one)).containsExactly("moe interpreter:0");
        assertThat(threadsOf(one.withDevices(List.of("interpreter:0", "interpreter:0"))))
                .containsExactlyInAnyOrder(
                        "moe-0 interpreter:0 (Kernel interpreter)", "moe-1 interpreter:0 (Kernel interpreter)");
    }

    /** Names of the threads that a layer has while it is open, and none of them after. */
    private static List<String> threadsOf(MoeOptions options) {
        Set<Thread> before = new HashSet<>(Thread.getAllStackTraces().keySet());
        Set<Thread> fresh;
        try (MoeLayer layer = MoeLayer.of(LAYER, options)) {
            layer.forward(LAYER.hidden(M, 1), M, new float[M * 40], null);
            fresh = new HashSet<>(Thread.getAllStackTraces().keySet());
        }
        fresh.removeAll(before);
        fresh.removeIf(thread -> !thread.getName().startsWith("moe"));
        assertThat(fresh).noneMatch(Thread::isAlive);
        return fresh.stream().map(Thread::getName).toList();
    }
}
