package org.tornadomoe.tornado.device;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.reflect.Proxy;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.Test;
import uk.ac.manchester.tornado.api.TornadoDeviceContext;
import uk.ac.manchester.tornado.api.TornadoTargetDevice;
import uk.ac.manchester.tornado.api.common.TornadoDevice;

/** Every further GPU gets a context of its own, in the fields where TornadoVM (5.2.0) has the one that all share. */
class CudaContextsTest {
    /** TornadoVM's platform, with its native call. */
    @SuppressWarnings({"unused", "UnusedMethod", "UnusedVariable"}) // called by reflection
    static final class Platform {
        private final long oclPlatformPtr = 7;
        final List<String> created = new ArrayList<>();
        long next = 20;

        private long clCreateContext(long platform, long[] devices) {
            created.add(platform + ": " + devices[0] + " of " + devices.length);
            return next;
        }
    }

    /** TornadoVM's context. */
    static final class Context {
        private final Platform platform;
        final long pointer;
        private final List<?> devices;

        public Context(Platform platform, long pointer, List<?> devices) {
            this.platform = platform;
            this.pointer = pointer;
            this.devices = devices;
        }

        public Platform getPlatform() {
            return platform;
        }

        public List<?> devices() {
            return devices;
        }
    }

    /** What a device is used through. */
    static class Use implements TornadoDeviceContext {
        private final int index;
        private Context context;

        Use(int index, Context context) {
            this.index = index;
            this.context = context;
        }

        public Context getPlatformContext() {
            return context;
        }

        @Override
        public TornadoTargetDevice getDevice() {
            throw new UnsupportedOperationException();
        }

        @Override
        public boolean isFP64Supported() {
            return true;
        }

        @Override
        public int getDeviceIndex() {
            return index;
        }

        @Override
        public int getDevicePlatform() {
            return 0;
        }

        @Override
        public String getDeviceName() {
            return "GPU " + index;
        }

        @Override
        public int getDriverIndex() {
            return 0;
        }

        @Override
        public Set<Long> getRegisteredPlanIds() {
            throw new UnsupportedOperationException();
        }

        @Override
        public void setResetToFalse() {}
    }

    /** Of another version: the field is elsewhere. */
    private static final class OtherUse extends Use {
        OtherUse(int index, Context context) {
            super(index, context);
        }
    }

    /** What the driver calls a device. */
    interface Pointed extends TornadoTargetDevice {
        long getDevicePointer();
    }

    private final Platform platform = new Platform();
    private final Context shared = new Context(platform, 10, List.of("a", "b"));

    private static Device device(String backend, Use use) {
        Object physical = Proxy.newProxyInstance(
                CudaContextsTest.class.getClassLoader(),
                new Class<?>[] {Pointed.class},
                (_, method, _) -> switch (method.getName()) {
                    case "getDevicePointer" -> 1000L + use.getDeviceIndex();
                    default -> throw new UnsupportedOperationException(method.getName());
                });
        TornadoDevice tornado = (TornadoDevice) Proxy.newProxyInstance(
                CudaContextsTest.class.getClassLoader(),
                new Class<?>[] {TornadoDevice.class},
                (_, method, _) -> switch (method.getName()) {
                    case "getDeviceContext" -> use;
                    case "getPhysicalDevice" -> physical;
                    default -> throw new UnsupportedOperationException(method.getName());
                });
        Probe fine = new Probe(_ -> null);
        return new Device(
                "cuda:" + use.getDeviceIndex(),
                backend,
                "GPU",
                1,
                1024,
                tornado,
                new Probe(CudaContexts::give),
                fine,
                fine);
    }

    @Test
    void eachFurtherGpuIsGivenItsOwn() {
        Use second = new Use(1, shared);
        Use third = new Use(2, shared);
        assertThat(device(Device.CUDA, second).unusable()).isNull();
        platform.next = 30;
        assertThat(device(Device.CUDA, third).unusable()).isNull();
        assertThat(platform.created).containsExactly("7: 1001 of 1", "7: 1002 of 1");
        assertThat(second.getPlatformContext().pointer).isEqualTo(20);
        assertThat(third.getPlatformContext().pointer).isEqualTo(30);
        assertThat(second.getPlatformContext().devices()).isEqualTo(List.of("a", "b"));
        assertThat(second.getPlatformContext().getPlatform()).isSameAs(platform);
    }

    /** Once: a context is not made anew for every layer. */
    @Test
    void itIsAskedForOnce() {
        Device device = device(Device.CUDA, new Use(1, shared));
        assertThat(device.unusable()).isNull();
        assertThat(device.unusable()).isNull();
        assertThat(platform.created).hasSize(1);
    }

    @Test
    void theFirstAndOtherBackendsKeepTheirs() {
        Use first = new Use(0, shared);
        Use other = new Use(1, shared);
        assertThat(device(Device.CUDA, first).unusable()).isNull();
        assertThat(device(Device.PTX, other).unusable()).isNull();
        assertThat(platform.created).isEmpty();
        assertThat(first.getPlatformContext()).isSameAs(shared);
        assertThat(other.getPlatformContext()).isSameAs(shared);
    }

    @Test
    void aDriverThatRefusesLeavesItUnusable() {
        platform.next = 0;
        Use second = new Use(1, shared);
        assertThat(device(Device.CUDA, second).unusable()).isEqualTo("the driver refused a context for it");
        assertThat(second.getPlatformContext()).isSameAs(shared);
    }

    /** It would run on the first GPU, without a word. */
    @Test
    void anotherVersionIsNotTrusted() {
        assertThat(device(Device.CUDA, new OtherUse(1, shared)).unusable())
                .startsWith("TornadoVM would run it on the first GPU, which can be changed only in version 5.2.0: ")
                .endsWith("NoSuchFieldException: context");
        assertThat(platform.created).isEmpty();
    }

    /** What a device of a later version offers beside its context. */
    public interface Entered {
        void makeNativeContextCurrent();
    }

    /** Where TornadoVM has a context a device, it is entered, and the driver is asked whose it is. */
    @Test
    void whereEachHasItsOwnTheDriverIsAskedWhose() {
        int[] current = {0};
        TornadoDevice tornado = (TornadoDevice) Proxy.newProxyInstance(
                CudaContextsTest.class.getClassLoader(),
                new Class<?>[] {TornadoDevice.class, Entered.class},
                (_, method, _) -> {
                    assertThat(method.getName()).isEqualTo("makeNativeContextCurrent");
                    return current[0]++;
                });
        CudaDriver driver = (CudaDriver) Proxy.newProxyInstance(
                CudaContextsTest.class.getClassLoader(), new Class<?>[] {CudaDriver.class}, (_, method, _) -> {
                    assertThat(method.getName()).isEqualTo("currentDevice");
                    return current[0];
                });
        Probe fine = new Probe(_ -> null);
        Device second = new Device("cuda:1", Device.CUDA, "GPU", 1, 1024, tornado, fine, fine, fine);
        assertThat(CudaContexts.give(second, driver)).isNull();
        assertThat(CudaContexts.give(second, driver)).isEqualTo("TornadoVM would run it on GPU 2");
    }
}
