package org.tornadomoe.tornado.device;

import java.lang.reflect.Field;
import java.lang.reflect.InaccessibleObjectException;
import java.lang.reflect.Method;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * Gives each GPU except the first its own CUDA context. TornadoVM's CUDA backend (5.2) makes one context, on the first
 * GPU, and uses it for all GPUs: {@code cuda:0} silently does the work of {@code cuda:1}. TornadoVM's other backends
 * have one context per device, and so do later versions of the CUDA backend; there this class asks which GPU the
 * context belongs to. Otherwise, before such a GPU is first used, this class replaces the shared context by one made
 * with TornadoVM's own native call. For that TornadoVM's package has to be open ({@value #OPEN}).
 */
final class CudaContexts {
    private static final String PACKAGE = "uk.ac.manchester.tornado.drivers.cuda";
    private static final String OPEN = "--add-opens=tornado.drivers.cuda/" + PACKAGE + "=ALL-UNNAMED";

    private CudaContexts() {}

    /** {@link #give(Device, CudaDriver)} with NVIDIA's driver. */
    static @Nullable String give(Device device) {
        return give(device, CudaDriver.NVIDIA);
    }

    /**
     * Gives a device its own context, unless it is not a CUDA device or has one. Returns why that failed; null if it
     * succeeded. Call it once.
     */
    static @Nullable String give(Device device, CudaDriver driver) {
        if (!device.is(Device.CUDA) || device.index() == 0) {
            return null;
        }
        if (Quirks.enterOwnContext(device.tornado())) {
            int current = driver.currentDevice();
            return current == device.index() ? null : "TornadoVM would run it on GPU " + current;
        }
        try {
            Object used = device.tornado().getDeviceContext();
            Object shared = call(used, "getPlatformContext");
            Object platform = call(shared, "getPlatform");
            Object handle = call(device.tornado().getPhysicalDevice(), "getDevicePointer");
            Field pointer = platform.getClass().getDeclaredField("oclPlatformPtr");
            Method create = platform.getClass().getDeclaredMethod("clCreateContext", long.class, long[].class);
            Field context = used.getClass().getDeclaredField("context");
            for (var member : List.of(pointer, create, context)) {
                member.setAccessible(true);
            }
            long own = (long) create.invoke(platform, pointer.get(platform), new long[] {(long) handle});
            if (own == 0) {
                return "the driver refused a context for it";
            }
            context.set(
                    used,
                    shared.getClass()
                            .getConstructor(platform.getClass(), long.class, List.class)
                            .newInstance(platform, own, call(shared, "devices")));
            return null;
        } catch (InaccessibleObjectException closed) {
            return "TornadoVM would run it on the first GPU; to change that, start the JVM with " + OPEN;
        } catch (ReflectiveOperationException | RuntimeException other) {
            return "TornadoVM would run it on the first GPU, which can be changed only in version " + Quirks.TRIED
                    + ": " + RootCause.of(other);
        }
    }

    private static Object call(Object on, String method) throws ReflectiveOperationException {
        return on.getClass().getMethod(method).invoke(on);
    }
}
