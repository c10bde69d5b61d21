package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.MemorySegment;
import java.util.Collections;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.host.Team;
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
        List<TornadoMoeKernel> kernels = parts.stream().map(part -> part.kernel).toList();
        return new JoinedMoeKernel(kernels, new CudaCall(kernels, new Team(1))); // one thread, in one order
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

    /** Of few tokens: all read all, the first adds what the others have computed where it lies, and gives it back. */
    @Test
    void theDevicesWaitForOneAnotherAndTheFirstAdds() {
        int pinned = driver.pinned();
        MoeKernel joined = join();
        List<String> joining = driver.calls();
        assertThat(joining)
                .contains("10: usePeer 20", "10: usePeer 30", "20: usePeer 10", "20: usePeer 30", "30: usePeer 10")
                .contains("30: compile [--gpu-architecture=sm_90]", "30: function addFloats")
                .noneMatch(call -> call.contains("allocate"));
        forward(joined);
        List<String> calls = driver.calls();
        Launched adds = driver.launched().getLast();
        RecordedPart first = parts.getFirst();
        for (RecordedPart part : parts) {
            List<String> own = calls.stream()
                    .filter(call -> call.startsWith(part.context + ": ") && !call.contains("setContext"))
                    .toList();
            assertThat(own)
                    .as("GPU %d", part.context / 10 - 1)
                    .startsWith(
                            copy("copyToDevice", part, part.arrays.work.header, 12),
                            copy("copyToDevice", part, part.arrays.work.hidden, BYTES),
                            part.context + ": launch prepare",
                            part.context + ": launch route",
                            part.context + ": launch skinnyGemm",
                            part.context + ": launch skinnyGemm",
                            part.context + ": launch combine");
            assertThat(own.get(7)).startsWith(part.context + ": record ");
            assertThat(own).endsWith(part.context + ": await " + part.context * 10);
        }
        assertThat(calls)
                .containsSubsequence(
                        "30: launch combine",
                        "30: record " + event(calls, "30: record "),
                        "10: waitFor " + event(calls, "20: record "),
                        "10: waitFor " + event(calls, "30: record "),
                        "10: launch addFloats",
                        copy("copyFromDevice", first, first.arrays.work.output, BYTES),
                        "30: await 300",
                        "20: await 200",
                        "10: await 100")
                .noneMatch(call -> call.startsWith("20: copyFrom") || call.startsWith("30: copyFrom"));
        assertThat(adds.parameters())
                .containsExactly(
                        first.address(first.arrays.work.output),
                        parts.get(1).address(parts.get(1).arrays.work.output),
                        parts.get(2).address(parts.get(2).arrays.work.output),
                        0,
                        0,
                        0,
                        0,
                        0,
                        0,
                        3,
                        0,
                        M * 40);
        assertThat(adds.gridX() * adds.block() * 4).isGreaterThanOrEqualTo(M * 40);
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
        assertThat(driver.pinned()).isEqualTo(pinned);
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
        int pinned = driver.pinned();
        MoeKernel joined = join();
        List<String> calls = driver.calls();
        joined.close();
        for (int at = 0; at < calls.size(); at++) {
            int[] count = {0};
            int which = at;
            MoeExecutionException cause = new MoeExecutionException("no " + at);
            driver.failAt(_ -> count[0]++ == which, cause);
            if (calls.get(at).contains(": pin ")) { // copies are slower then
                join().close();
            } else {
                assertThatThrownBy(this::join).isSameAs(cause).hasNoSuppressedExceptions();
            }
            assertThat(driver.open()).as("after %d", at).isEqualTo(before);
            assertThat(driver.pinned()).as("after %d", at).isEqualTo(pinned);
        }
        driver.failAt("function addFloats");
        driver.failAt("unloadModule");
        driver.failAt("destroyStream");
        assertThatThrownBy(this::join)
                .hasMessage("function addFloats: CUDA_ERROR")
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
                .hasMessage("unloadModule: CUDA_ERROR")
                .satisfies(first -> assertThat(first.getSuppressed())
                        .extracting(Throwable::getMessage)
                        .containsExactly("destroyEvent: CUDA_ERROR"));
        assertThat(driver.open()).as("the two that the driver refused").hasSize(before + 2);
        joined.close();
    }

    @Test
    void itTellsOfItsDevicesAndMemory() {
        MoeKernel joined = join();
        assertThat(joined.device()).isEqualTo("cuda:0 (GPU 0), cuda:1 (GPU 1), cuda:2 (GPU 2)");
        assertThat(joined.deviceBytes()).isZero();
    }

    /** Only after a call, of parts that are all CUDA's, and not of more than are added together. */
    @Test
    void kernelsAreJoinedThatCanBe() {
        TornadoMoeKernel first = parts.getFirst().kernel;
        assertThat(first.joinedWith(List.of(parts.get(1).kernel))).isInstanceOf(JoinedMoeKernel.class);
        RecordedPart uncalled = new RecordedPart(driver, 3, 40, 400, LAYER.config(), experts);
        assertThat(first.joinedWith(List.of(uncalled.kernel))).isNull();
        assertThat(first.joinedWith(List.of(join()))).isNull();
        assertThat(first.joinedWith(Collections.nCopies(CudaPart.MOST, parts.get(1).kernel)))
                .as("more than are added together")
                .isNull();
    }
}
