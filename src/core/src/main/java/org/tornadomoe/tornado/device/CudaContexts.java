package org.tornadomoe.tornado.device;

import java.lang.reflect.Field;
import java.lang.reflect.InaccessibleObjectException;
import java.lang.reflect.Method;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * A CUDA context for each GPU but the first. TornadoVM's CUDA backend (5.2) makes one context, on the first GPU, and
 * hands it to all: whatever is asked of {@code cuda:1} is done by {@code cuda:0}, without a word. Its other backends
 * have a context a device, as CUDA's has later, where it is asked which GPU its context is of. So before such a GPU is
 * first used it is given its own, made by TornadoVM's own native call, in place of the shared one; for which
 * TornadoVM's package has to be open ({@value #OPEN}).
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
     * Gives a device its own context, unless it is none of CUDA's or has one; why that can't be, null if it is done. To
     * be called once.
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
            return "TornadoVM would run it on the first GPU, and is closed to a change of that: start the JVM with "
                    + OPEN;
        } catch (ReflectiveOperationException | RuntimeException other) {
            return "TornadoVM would run it on the first GPU, and isn't the version (" + Quirks.TRIED
                    + ") in which that can be changed: " + RootCause.of(other);
        }
    }

    private static Object call(Object on, String method) throws ReflectiveOperationException {
        return on.getClass().getMethod(method).invoke(on);
    }
}
