package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.ArrayList;
import java.util.List;
import java.util.ServiceLoader;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.cuda.CudaLibrary;
import org.tornadomoe.tornado.cuda.RecordingDriver;
import uk.ac.manchester.tornado.runtime.common.TornadoXPUDevice;
import uk.ac.manchester.tornado.runtime.library.spi.TornadoLibraryProvider;

/** What TornadoVM asks of the library, and what the driver is asked for it. */
class CudaLibraryTest {
    private static final RandomLayer LAYER = RandomLayer.of(5, 2, 40, 24, 100, 7);

    private final Int8Experts experts = Int8Quantizer.quantize(LAYER, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
    private final RecordingDriver driver = new RecordingDriver();

    @AfterEach
    void close() {
        experts.close();
    }

    private RecordedPart part(int device, long context, long stream) {
        return new RecordedPart(driver, device, context, stream, LAYER.config(), experts);
    }

    @Test
    void tornadoVmFindsIt() {
        assertThat(ServiceLoader.load(TornadoLibraryProvider.class)).hasAtLeastOneElementOfType(CudaLibrary.class);
        TornadoXPUDevice nvidia = RecordedPart.handles(0, 10, () -> 100);
        CudaLibrary library = driver.library();
        assertThat(library.libraryName()).isEqualTo("tornado-moe");
        assertThat(library.canHandle(nvidia)).isTrue();
    }

    /** Nothing is prepared twice, and a source with the same options is compiled once for all kernels of it. */
    @Test
    void preparingCompilesEverySourceOnce() {
        RecordedPart part = part(0, 10, 100);
        driver.calls();
        part.arrays.setTokens(3);
        part.prepare();
        List<String> calls = driver.calls();
        assertThat(calls)
                .filteredOn(call -> call.contains("compile"))
                .hasSize(3)
                .anyMatch(call -> call.contains("ACTIVATION=0, -DLAYOUT=1"))
                .anyMatch(call -> call.contains("ACTIVATION=-1, -DLAYOUT=0"))
                .allMatch(call -> call.contains("--gpu-architecture=sm_90"))
                .filteredOn(call -> call.contains("ACTIVATION"))
                .allMatch(call -> call.contains("--gpu-architecture=sm_90a"));
        assertThat(calls).noneMatch(call -> call.contains("launch") || call.contains("copy"));
        part.prepare();
        assertThat(driver.calls()).containsExactly("10: setContext 10", "10: await 0");
        part.dispatch();
        assertThat(driver.calls()).contains("10: launch route").endsWith("10: await 100");
    }

    /** TornadoVM frees no other with the plan, not even those that the library brings back itself. */
    @Test
    void everyArrayIsInATransfer() {
        RecordedPart part = part(0, 10, 100);
        List<Object> named = new ArrayList<>(part.kernel.graph().inputs());
        named.addAll(part.toHost);
        assertThat(part.task.getParameters())
                .hasSizeGreaterThan(10)
                .allMatch(array -> named.stream().anyMatch(one -> one == array));
    }

    /** TornadoVM's pins end when any plan is closed. */
    @Test
    void copiedArraysArePinnedUntilThePlanIsClosed() {
        RecordedPart part = part(0, 10, 100).called(3);
        assertThat(driver.calls())
                .contains(
                        "10: pin "
                                + part.arrays.work.hidden.getSegmentWithHeader().byteSize(),
                        "10: pin "
                                + part.arrays.work.output.getSegmentWithHeader().byteSize());
        int pinned = driver.pinned();
        part.called(100);
        assertThat(driver.pinned()).isEqualTo(pinned);
        part.destroyPlan();
        assertThat(driver.pinned()).isZero();
    }

    @Test
    void whatCannotBePinnedIsCopiedAllTheSame() {
        driver.failAt(call -> call.what().startsWith("pin"), new MoeExecutionException("no"));
        RecordedPart part = part(0, 10, 100).called(3);
        assertThat(driver.calls()).anyMatch(call -> call.startsWith("10: copyToDevice"));
        part.destroyPlan();
        assertThat(driver.pinned()).isZero();
    }

    /**
     * TornadoVM's tasks in Java go to the stream of the thread that executes the plan, and only a stream keeps an
     * order.
     */
    @Test
    void kernelsGoToTheStreamOfTheThreadThatCalls() {
        RecordedPart part = part(0, 10, 100).called(3);
        assertThat(driver.launched()).hasSizeGreaterThan(3).allMatch(launch -> launch.stream() == 100);
        driver.add(10, 101, 0);
        part.calledFromStream(101);
        driver.calls();
        part.prepare();
        part.dispatch();
        assertThat(driver.launched()).hasSizeGreaterThan(3).allMatch(launch -> launch.stream() == 101);
        assertThat(driver.calls()).endsWith("10: await 101");
    }

    /**
     * TornadoVM zeroes new buffers there, and its own streams don't wait for it: a kernel's values could be gone again.
     */
    @Test
    void thePlansFirstExecutionWaitsForTheDefaultStream() {
        RecordedPart part = part(0, 10, 100);
        part.arrays.setTokens(3);
        part.prepare(); // compiled beforehand, nothing is allocated yet
        driver.calls();
        part.prepare();
        assertThat(driver.calls()).contains("10: await 0");
        part.dispatch();
        driver.calls();
        part.prepare();
        part.dispatch();
        assertThat(driver.calls()).doesNotContain("10: await 0");
    }

    /** Waiting would end the recording of a CUDA graph; kernels are prepared before that, too. */
    @Test
    void nothingWaitsWhileAGraphIsRecorded() {
        RecordedPart part = part(0, 10, 100);
        part.arrays.setTokens(3);
        driver.record(true);
        part.prepare();
        assertThat(driver.calls()).doesNotContain("10: await 0");
    }

    /** A run that another plan has prepared isn't this one's. */
    @Test
    void aRunIsPreparedBeforeItIsLaunched() {
        RecordedPart part = part(0, 10, 100);
        assertThatThrownBy(part::dispatch).hasMessageContaining("wasn't prepared");
    }

    @Test
    void whatIsForAnotherGpuIsRefused() {
        driver.add(10, 100, 0);
        CudaLibrary library = driver.library();
        assertThatThrownBy(() -> library.createContext(RecordedPart.handles(1, 10, () -> 100), 5))
                .isInstanceOf(MoeExecutionException.class)
                .hasMessage("TornadoVM would run on GPU 0 what is for GPU 1");
        assertThat(driver.open()).isEmpty();
    }

    /** Each has its modules in its own, is launched in its own, and closing one leaves the other's. */
    @Test
    void plansOfTwoContextsHaveNothingInCommon() {
        RecordedPart first = part(0, 10, 100).called(3);
        RecordedPart second = part(1, 20, 200);
        driver.calls();
        second.called(100);
        assertThat(driver.calls())
                .hasSizeGreaterThan(10)
                .allMatch(call -> call.startsWith("20: ") || call.equals("10: setContext 20"));
        assertThat(driver.open())
                .containsExactlyInAnyOrder(
                        "10: module", "10: module", "10: module", "20: module", "20: module", "20: module");
        first.destroyPlan();
        assertThat(driver.open()).containsExactly("20: module", "20: module", "20: module");
        assertThat(first.cudaTask.replay()).as("needs the plan").isNull();
        second.dispatch();
        second.destroyPlan();
        assertThat(driver.open()).isEmpty();
    }

    /** Whatever fails, the rest is given back, and the first failure told. */
    @ParameterizedTest
    @ValueSource(strings = {"unloadModule", "setContext 10"})
    void closingGoesOnAfterAFailure(String what) {
        RecordedPart part = part(0, 10, 100).called(3);
        part.arrays.setTokens(100);
        driver.failAt(what);
        driver.failAt(call -> call.what().equals("unloadModule"), new IllegalStateException("another"));
        assertThatThrownBy(part::destroyPlan)
                .hasMessage(what + ": CUDA_ERROR")
                .satisfies(first -> assertThat(first.getSuppressed())
                        .extracting(Throwable::getMessage)
                        .containsExactly("another"));
        // A module that the driver didn't take back, once or twice.
        assertThat(driver.open()).hasSize(what.equals("unloadModule") ? 2 : 1);
        assertThat(part.cudaTask.replay()).isNull();
    }
}
