package org.tornadomoe.tornado.device;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.lang.reflect.Proxy;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import uk.ac.manchester.tornado.api.TornadoBackend;
import uk.ac.manchester.tornado.api.TornadoRuntime;
import uk.ac.manchester.tornado.api.TornadoTargetDevice;
import uk.ac.manchester.tornado.api.common.TornadoDevice;
import uk.ac.manchester.tornado.api.enums.TornadoDeviceType;
import uk.ac.manchester.tornado.api.enums.TornadoVMBackendType;
import uk.ac.manchester.tornado.api.runtime.TornadoRuntimeProvider;

/** Which devices are seen where some of them, or whole backends, fail when looked at. */
class TornadoHomeTest {
    @ParameterizedTest
    @CsvSource(nullValues = "-", textBlock = """
        -             | no TornadoVM SDK (TORNADOVM_HOME is not set): running on the interpreter
        no driver     | no driver
        ''            | -
        """, delimiter = '|')
    void theLauncherKnowsBetterWhyTheInterpreterRuns(@Nullable String launchers, @Nullable String note) {
        assumeTrue(TornadoHome.current().kind() == TornadoHome.Kind.INTERPRETER);
        String before = System.getProperty("tornadomoe.note");
        try {
            if (launchers != null) {
                System.setProperty("tornadomoe.note", launchers);
            }
            TornadoHome home = TornadoHome.of(TornadoRuntimeProvider.getTornadoRuntime(), null);
            assertThat(home.note()).isEqualTo(note);
            assertThat(home.missing())
                    .isEqualTo(note == null ? null : note.replace(": running on the interpreter", ""));
        } finally {
            if (before == null) {
                System.clearProperty("tornadomoe.note");
            } else {
                System.setProperty("tornadomoe.note", before);
            }
        }
    }

    /** An object of that interface with these answers; an answer that is a RuntimeException or Error is thrown. */
    private static <T> T answering(Class<T> type, Map<String, Object> answers) {
        Object proxy = Proxy.newProxyInstance(type.getClassLoader(), new Class<?>[] {type}, (self, method, args) -> {
            String call = args == null ? method.getName() : method.getName() + args[0];
            Object answer = answers.getOrDefault(call, answers.get(method.getName()));
            if (answer instanceof Throwable failure) {
                throw failure;
            }
            return answer;
        });
        return type.cast(proxy);
    }

    private static TornadoDevice device(String name, TornadoDeviceType type) {
        TornadoTargetDevice physical = answering(
                TornadoTargetDevice.class,
                Map.of(
                        "getDeviceName",
                        name,
                        "getDeviceGlobalMemorySize",
                        1L << 40,
                        "getMaxThreadsPerBlock",
                        1024,
                        "getDeviceMaxWorkGroupSize",
                        new long[] {1024}));
        return answering(TornadoDevice.class, Map.of("getPhysicalDevice", physical, "getDeviceType", type));
    }

    private static TornadoRuntime runtime(Object ptx, Object opencl) {
        return answering(
                TornadoRuntime.class,
                Map.of(
                        "getNumBackends",
                        2,
                        "getBackendType0",
                        TornadoVMBackendType.PTX,
                        "getBackendType1",
                        TornadoVMBackendType.OPENCL,
                        "getBackend0",
                        ptx,
                        "getBackend1",
                        opencl));
    }

    @Test
    void theBestDeviceIsAGpuWithCudasCompiler() {
        TornadoHome home = TornadoHome.of(
                runtime(
                        answering(
                                TornadoBackend.class,
                                Map.of("getNumDevices", 1, "getDevice0", device("H", TornadoDeviceType.GPU))),
                        answering(
                                TornadoBackend.class,
                                Map.of(
                                        "getNumDevices", 2,
                                        "getDevice0", device("C", TornadoDeviceType.CPU),
                                        "getDevice1", device("G", TornadoDeviceType.GPU)))),
                null);
        assertThat(home.kind()).isEqualTo(TornadoHome.Kind.SDK);
        assertThat(home.devices()).extracting(Device::id).containsExactly("ptx:0", "opencl:0", "opencl:1");
        assertThat(home.find(null)).extracting(Device::id).isEqualTo("ptx:0");
        assertThat(home.find("opencl")).extracting(Device::id).isEqualTo("opencl:0");
        assertThat(home.find("opencl:1")).extracting(Device::id).isEqualTo("opencl:1");
        assertThat(home.find("opencl:2")).isNull();
        assertThat(home.find("open")).isNull();
        assertThat(home.broken()).isEmpty();
    }

    @Test
    void aDeviceThatFailsIsLeftOutAndNamed() {
        TornadoHome home = TornadoHome.of(
                runtime(
                        answering(
                                TornadoBackend.class,
                                Map.of(
                                        "getNumDevices",
                                        2,
                                        "getDevice0",
                                        new IllegalStateException("ECC error"),
                                        "getDevice1",
                                        device("H", TornadoDeviceType.GPU))),
                        new UnsatisfiedLinkError("libOpenCL.so.1")),
                null);
        assertThat(home.kind()).isEqualTo(TornadoHome.Kind.SDK);
        assertThat(home.devices()).extracting(Device::id).containsExactly("ptx:1");
        assertThat(home.broken())
                .containsEntry("ptx:0", "IllegalStateException: ECC error")
                .containsEntry("opencl", "UnsatisfiedLinkError: libOpenCL.so.1");
        assertThat(home.note())
                .contains("ptx:0 is left out: IllegalStateException: ECC error")
                .contains("opencl is left out: UnsatisfiedLinkError: libOpenCL.so.1");
    }

    /** Of a backend that nobody has met, the name is enough. */
    @Test
    void aBackendThatNobodyHasMetIsOfferedWithAWord() {
        TornadoRuntime runtime = answering(
                TornadoRuntime.class,
                Map.of(
                        "getNumBackends",
                        1,
                        "getBackendType",
                        TornadoVMBackendType.METAL,
                        "getBackend",
                        answering(
                                TornadoBackend.class,
                                Map.of("getNumDevices", 1, "getDevice0", device("M", TornadoDeviceType.GPU)))));
        TornadoHome home = TornadoHome.of(runtime, null);
        assertThat(home.devices()).extracting(Device::id).containsExactly("metal:0");
        assertThat(home.devices().getFirst().isTried()).isFalse();
        assertThat(home.find(null)).isSameAs(home.devices().getFirst());
        assertThat(home.note())
                .contains("METAL is a backend that no layer was ever tried on")
                .contains("self-check");
    }

    @Test
    void whereEverythingFailsTheFirstCauseIsTold() {
        TornadoHome home = TornadoHome.of(
                runtime(new IllegalStateException("no driver"), new IllegalStateException("no ICD")), null);
        assertThat(home.kind()).isEqualTo(TornadoHome.Kind.NONE);
        assertThat(home.devices()).isEmpty();
        assertThat(home.note()).endsWith("IllegalStateException: no driver");
    }
}
