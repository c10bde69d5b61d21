package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tornado.graph.Stage;
import org.tornadomoe.tornado.graph.StageRun;
import org.tornadomoe.tornado.kernels.CombineKernels;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** A stage whose lists are wrong is found. */
@ExtendWith(LooksForRaces.class)
class StageAccessesTest {
    private static final Device DEVICE = TornadoHome.current().devices().getFirst();

    private final IntArray header = IntArray.fromElements(1);
    private final IntArray keys = IntArray.fromElements(0, 0);
    private final FloatArray down = FloatArray.fromElements(1, 2, 3, 4);
    private final FloatArray output = new FloatArray(2);

    private Stage combine(List<Object> reads, List<Object> writes) {
        return new Stage(
                "combine",
                CombineKernels.GROUP,
                m -> 1,
                m -> 1,
                (graph, task) -> graph.task(
                        task, CombineKernels::combine, new KernelContext(), header, keys, down, output, 2, 2),
                reads,
                writes);
    }

    private void runAndMatch(List<Object> reads, List<Object> writes) {
        List<Object> all = List.of(header, keys, down, output);
        StageAccesses.forget();
        StageRun.execute(DEVICE, "planted", List.of(combine(all, all)), 1);
        StageAccesses.match(List.of(combine(reads, writes)));
    }

    @Test
    void aStageThatSaysWhatItDoes() {
        runAndMatch(List.of(header, keys, down), List.of(output));
    }

    @Test
    void aReadThatIsNotDeclared() {
        assertThatThrownBy(() -> runAndMatch(List.of(header, keys), List.of(output)))
                .isInstanceOf(AssertionError.class)
                .hasMessageContaining("combine's arguments that it reads undeclared");
    }

    @Test
    void aWriteThatIsNotDeclared() {
        assertThatThrownBy(() -> runAndMatch(List.of(header, keys, down), List.of()))
                .isInstanceOf(AssertionError.class)
                .hasMessageContaining("combine's arguments that it writes undeclared");
    }

    @Test
    void aWriteThatIsDeclaredAndNotDone() {
        assertThatThrownBy(() -> runAndMatch(List.of(header, keys, down), List.of(output, down)))
                .isInstanceOf(AssertionError.class)
                .hasMessageContaining("combine declares and never writes");
    }
}
