package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.cuda.RecordingDriver;
import org.tornadomoe.tornado.cuda.RecordingDriver.Launched;

/** Three GPUs that add their parts of a layer themselves, as their driver is told it. */
class JoinedMoeKernelTest {
    private static final RandomLayer LAYER = RandomLayer.of(5, 2, 40, 24, 8, 7);
    private static final int M = 3;
    private static final long BYTES = 4 * M * 40;

    /** Between the others' outputs. */
    private static final long STRIDE = 4 * 8 * 40;

    private final Int8Experts experts = Int8Quantizer.quantize(LAYER, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
    private final RecordingDriver driver = new RecordingDriver();
    private final List<RecordedPart> parts = List.of(part(0, 10, 100), part(1, 20, 200), part(2, 30, 300));

    @BeforeEach
    void forgetLoading() {
        driver.calls();
        driver.launched();
    }

    @AfterEach
    void close() {
        experts.close();
    }

    private RecordedPart part(int device, long context, long stream) {
        return new RecordedPart(driver, device, context, stream, LAYER.config(), experts).called(M);
    }

    private MoeKernel join() {
        return new JoinedMoeKernel(parts.stream().map(part -> part.kernel).toList());
    }

    private static void forward(MoeKernel kernel, ChosenExperts chosen) {
        kernel.forward(
                MemorySegment.ofArray(LAYER.hidden(M, 1)), M, MemorySegment.ofArray(new float[M * 40]), chosen, null);
    }

    private static void forward(MoeKernel kernel) {
        kernel.forward(
                MemorySegment.ofArray(LAYER.hidden(M, 1)), M, MemorySegment.ofArray(new float[M * 40]), null, null);
    }

    private static String copy(String how, RecordedPart part, Object array, long bytes) {
        return part.context + ": " + how + " " + part.address(array) + " " + bytes;
    }

    private static List<String> kernels(RecordedPart part) {
        return List.of("prepare", "route", "skinnyGemm", "skinnyGemm", "combine").stream()
                .map(kernel -> part.context + ": launch " + kernel)
                .toList();
    }

    /** The other parts' share of the steps. */
    private List<String> stepsOf(RecordedPart part, int before, long outputs, long arrived, long done) {
        RecordedPart first = parts.getFirst();
        return Stream.of(
                        List.of(
                                before + ": setContext " + part.context,
                                copy("copyToDevice", part, part.arrays.work.header, 12),
                                part.context + ": waitFor " + arrived,
                                part.context + ": copyBetween " + part.address(part.arrays.work.hidden) + " of "
                                        + part.context + " from " + first.address(first.arrays.work.hidden) + " of 10 "
                                        + BYTES),
                        kernels(part),
                        List.of(
                                part.context + ": copyBetween " + outputs + " of 10 from "
                                        + part.address(part.arrays.work.output) + " of " + part.context + " " + BYTES,
                                part.context + ": record " + done))
                .flatMap(List::stream)
                .toList();
    }

    @Test
    void theDevicesWaitForOneAnotherAndTheFirstAdds() {
        MoeKernel joined = join();
        assertThat(driver.calls())
                .containsExactly(
                        "30: setContext 10",
                        "10: allocate " + 2 * STRIDE,
                        "10: setContext 10",
                        "10: timelessEvent",
                        "10: currentDevice",
                        "10: compile [--gpu-architecture=sm_90]",
                        "10: setContext 10",
                        "10: loadModule",
                        "10: function addParts",
                        "10: setContext 20",
                        "20: timelessEvent",
                        "20: setContext 30",
                        "30: timelessEvent");
        forward(joined);
        List<String> calls = driver.calls();
        List<Launched> launched = driver.launched();
        Launched adds = launched.getLast();
        long outputs = adds.parameters()[1];
        long arrived = event(calls, "10: record ");
        long second = event(calls, "20: record ");
        long third = event(calls, "30: record ");
        RecordedPart first = parts.getFirst();
        assertThat(calls)
                .containsExactlyElementsOf(Stream.of(
                                List.of(
                                        "30: setContext 10",
                                        copy("copyToDevice", first, first.arrays.work.header, 12),
                                        copy("copyToDevice", first, first.arrays.work.hidden, BYTES),
                                        "10: record " + arrived),
                                kernels(first),
                                stepsOf(parts.get(1), 10, outputs, arrived, second),
                                stepsOf(parts.get(2), 20, outputs + STRIDE, arrived, third),
                                List.of(
                                        "30: setContext 10",
                                        "10: waitFor " + second,
                                        "10: waitFor " + third,
                                        "10: launch addParts",
                                        copy("copyFromDevice", first, first.arrays.work.output, BYTES),
                                        "10: setContext 30",
                                        "30: await 300",
                                        "30: setContext 20",
                                        "20: await 200",
                                        "20: setContext 10",
                                        "10: await 100"))
                        .flatMap(List::stream)
                        .toList());
        assertThat(adds.parameters())
                .containsExactly(first.address(first.arrays.work.output), outputs, M * 40, STRIDE / 4, 2);
        assertThat(adds.gridX() * adds.block()).isGreaterThanOrEqualTo(M * 40);
        assertThat(adds.block()).isEqualTo(256);
        assertThat(adds.stream()).isEqualTo(100);
        assertThat(adds.early())
                .as("it doesn't wait for the kernel in front itself")
                .isFalse();

        // Nothing is taken anew in the next call.
        forward(joined);
        assertThat(driver.calls().subList(1, calls.size())).isEqualTo(calls.subList(1, calls.size()));
        joined.close();
        assertThat(driver.open()).allMatch(what -> what.endsWith("module")).hasSize(9);
    }

    private static long event(List<String> calls, String start) {
        return Long.parseLong(calls.stream()
                .filter(call -> call.startsWith(start))
                .findFirst()
                .orElseThrow()
                .substring(start.length()));
    }

    /** Of the first device, which is asked for it alone. */
    @Test
    void choicesComeFromTheFirst() {
        MoeKernel joined = join();
        driver.calls();
        ChosenExperts chosen = ChosenExperts.allocate(M, 2);
        RecordedPart first = parts.getFirst();
        for (int i = 0; i < M * 2; i++) {
            first.arrays.work.topkIds.set(i, i % 5);
        }
        forward(joined, chosen);
        assertThat(driver.calls())
                .containsOnlyOnce(copy("copyFromDevice", first, first.arrays.work.topkIds, 4 * M * 2))
                .noneMatch(call -> call.startsWith("20: copyFrom") || call.startsWith("30: copyFrom"));
        assertThat(chosen.ids()).containsExactly(0, 1, 2, 3, 4, 0);
    }

    /**
     * Wherever a call fails: the failure is told with the device's name, every stream that has something on it is
     * waited for, and the next call is whole.
     */
    @Test
    void aCallThatFailsAnywhereIsWaitedFor() {
        MoeKernel joined = join();
        forward(joined);
        driver.calls();
        forward(joined);
        List<String> whole = driver.calls();
        for (int at = 0; at < whole.size(); at++) {
            String call = whole.get(at);
            int[] count = {0};
            int which = at;
            MoeExecutionException cause = new MoeExecutionException("no " + at);
            driver.failAt(_ -> count[0]++ == which, cause);
            assertThatThrownBy(() -> forward(joined))
                    .isInstanceOf(MoeExecutionException.class)
                    .hasMessageMatching("cuda:[012] \\(GPU [012]\\): no " + at)
                    .hasCause(cause)
                    .satisfies(failure -> assertThat(failure.getSuppressed()).isEmpty());
            List<String> calls = driver.calls();
            assertThat(calls.get(at)).isEqualTo(call);
            for (RecordedPart part : parts) {
                String stream = part.context + ": await " + part.context * 10;
                int last = calls.lastIndexOf(stream);
                boolean mayFail = call.equals(stream) || call.endsWith("setContext " + part.context);
                assertThat(mayFail
                                || calls.subList(last + 1, calls.size()).stream()
                                        .noneMatch(put -> put.startsWith(part.context + ": launch")
                                                || put.startsWith(part.context + ": copy")))
                        .as("cuda:%d is waited for in %s", part.context / 10 - 1, calls)
                        .isTrue();
            }
            forward(joined);
            // Only the context that is current before may be another.
            assertThat(driver.calls().subList(1, whole.size())).isEqualTo(whole.subList(1, whole.size()));
        }
    }

    /** Also an error, and also where waiting fails then. */
    @Test
    void theFirstCauseIsKept() {
        MoeKernel joined = join();
        Error error = new LinkageError("no such symbol");
        driver.failAt(call -> call.toString().equals("20: launch route"), error);
        driver.failAt(call -> call.toString().equals("20: await 200"), new MoeExecutionException("second"));
        driver.failAt(call -> call.toString().equals("10: await 100"), new IllegalStateException("third"));
        assertThatThrownBy(() -> forward(joined))
                .isSameAs(error)
                .satisfies(first -> assertThat(first.getSuppressed())
                        .singleElement()
                        .satisfies(second -> {
                            assertThat(second).hasMessage("cuda:1 (GPU 1): second");
                            assertThat(second.getSuppressed())
                                    .singleElement()
                                    .satisfies(third -> assertThat(third).hasMessage("third"));
                        }));
        forward(joined);
    }

    /** A device's failure may be what the first one, which waits for it, fails of. */
    @Test
    void theFailureOfTheDeviceThatIsWaitedForComesFirst() {
        MoeKernel joined = join();
        driver.failAt("await 300");
        driver.failAt("await 100");
        assertThatThrownBy(() -> forward(joined))
                .hasMessageStartingWith("cuda:2")
                .satisfies(first -> assertThat(first.getSuppressed())
                        .singleElement()
                        .satisfies(second -> assertThat(second).hasMessageStartingWith("cuda:0")));
    }

    /** What was taken is given back, and the cause told, whatever giving back says. */
    @Test
    void joiningThatFailsAnywhereLeavesNothing() {
        List<String> before = driver.open();
        MoeKernel joined = join();
        int calls = driver.calls().size();
        joined.close();
        for (int at = 0; at < calls; at++) {
            int[] count = {0};
            int which = at;
            MoeExecutionException cause = new MoeExecutionException("no " + at);
            driver.failAt(_ -> count[0]++ == which, cause);
            assertThatThrownBy(this::join).isSameAs(cause).hasNoSuppressedExceptions();
            assertThat(driver.open()).as("after %d", at).isEqualTo(before);
        }
        driver.failAt("function addParts");
        driver.failAt("unloadModule");
        driver.failAt("free");
        assertThatThrownBy(this::join)
                .hasMessage("function addParts: CUDA_ERROR")
                .satisfies(first -> assertThat(first.getSuppressed())
                        .singleElement()
                        .satisfies(second -> {
                            assertThat(second).hasMessage("unloadModule: CUDA_ERROR");
                            assertThat(second.getSuppressed()).hasSize(1);
                        }));
    }

    @Test
    void closingGoesOnAfterAFailure() {
        int before = driver.open().size();
        MoeKernel joined = join();
        driver.failAt("destroyEvent");
        driver.failAt("unloadModule");
        assertThatThrownBy(joined::close)
                .hasMessage("destroyEvent: CUDA_ERROR")
                .satisfies(first -> assertThat(first.getSuppressed())
                        .extracting(Throwable::getMessage)
                        .containsExactly("unloadModule: CUDA_ERROR"));
        assertThat(driver.open()).as("the two that the driver refused").hasSize(before + 2);
        joined.close();
    }

    @Test
    void itTellsOfItsDevicesAndMemory() {
        MoeKernel joined = join();
        assertThat(joined.device()).isEqualTo("cuda:0 (GPU 0), cuda:1 (GPU 1), cuda:2 (GPU 2)");
        assertThat(joined.deviceBytes()).isEqualTo(2 * STRIDE);
    }

    /** Only after a call, of parts that are all CUDA's, and not with hidden states of 16 bits. */
    @Test
    void kernelsAreJoinedThatCanBe() {
        TornadoMoeKernel first = parts.getFirst().kernel;
        assertThat(first.joinedWith(List.of(parts.get(1).kernel))).isInstanceOf(JoinedMoeKernel.class);
        RecordedPart uncalled = new RecordedPart(driver, 3, 40, 400, LAYER.config(), experts);
        assertThat(first.joinedWith(List.of(uncalled.kernel))).isNull();
        assertThat(first.joinedWith(List.of(join()))).isNull();
    }
}
