package org.tornadomoe.tornado.device;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.kernel.MoeExecutionException;

/** What a device has is found out by trying. */
class ProbeTest {
    private static final Device DEVICE = TornadoHome.current().devices().getFirst();

    @Test
    void theInterpreterHasAllInstructions() {
        assertThat(DEVICE.lacksDp4a()).isNull();
        assertThat(DEVICE.lacksInt8Mma()).isNull();
        assertThat(DEVICE.lacksHalfMma()).isNull();
    }

    @Test
    void anInstructionIsTriedOnce() {
        AtomicInteger tries = new AtomicInteger();
        Probe probe = new Probe(_ -> tries.incrementAndGet() + " tries");
        assertThat(probe.problem(DEVICE)).isEqualTo("1 tries");
        assertThat(probe.problem(DEVICE)).isEqualTo("1 tries");
        Probe has = new Probe(_ -> {
            tries.incrementAndGet();
            return null;
        });
        assertThat(has.problem(DEVICE)).isNull();
        assertThat(has.problem(DEVICE)).isNull();
        assertThat(tries).hasValue(2);
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void whateverFailsIsAReason(boolean error) {
        AtomicInteger tries = new AtomicInteger();
        Probe probe = new Probe(_ -> {
            tries.incrementAndGet();
            if (error) {
                throw new NoClassDefFoundError("a driver's class");
            }
            throw new MoeExecutionException(
                    "stage probe on abacus:0: no", new IllegalStateException("unimplemented\nand more"));
        });
        String reason = error ? "NoClassDefFoundError: a driver's class" : "IllegalStateException: unimplemented";
        assertThat(probe.problem(DEVICE)).isEqualTo(reason);
        assertThat(probe.problem(DEVICE)).isEqualTo(reason);
        assertThat(tries).hasValue(1);
    }

    @Test
    void whatTornadoVmSaysOfAKernelThatFailsIsKeptFromTheUser() {
        PrintStream out = System.out;
        ByteArrayOutputStream printed = new ByteArrayOutputStream();
        PrintStream here = new PrintStream(printed, true, StandardCharsets.UTF_8);
        System.setOut(here);
        try {
            new Probe(_ -> {
                        System.out.println("WARNING: Code Bailout to Java sequential. Use --debug to see the reason");
                        System.out.println("another line");
                        return null;
                    })
                    .problem(DEVICE);
            assertThat(System.out).isSameAs(here);
        } finally {
            System.setOut(out);
        }
        assertThat(printed.toString(StandardCharsets.UTF_8)).isEqualTo("another line" + System.lineSeparator());
    }

    @Test
    void wantOfMemoryIsNoReason() {
        Probe probe = new Probe(_ -> {
            throw new OutOfMemoryError("heap");
        });
        assertThatThrownBy(() -> probe.problem(DEVICE)).isInstanceOf(OutOfMemoryError.class);
    }
}
