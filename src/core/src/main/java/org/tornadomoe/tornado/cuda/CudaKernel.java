package org.tornadomoe.tornado.cuda;

import java.util.List;
import java.util.function.IntFunction;
import java.util.function.IntPredicate;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.RootCause;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * A kernel in CUDA C, for instructions that neither TornadoVM's compilers nor its prebuilt tasks support. {@link
 * CudaLibrary} compiles it for exactly the device's architecture. It launches the kernel so that it may start before
 * the previous kernel has ended (programmatic dependent launch); the kernel itself has to wait for the previous one.
 * For TornadoVM's CUDA backend.
 *
 * <p>The kernel's parameters are the reads, the writes, the updates and the scalars.
 *
 * @param name the step's name
 * @param source the resource beside the Java kernels
 * @param options compiler options
 * @param launch the source's kernel to launch for M tokens, and how; all have the same parameters
 * @param reads arrays, the first of which is the header
 * @param scalars ints and floats
 */
public record CudaKernel(
        String name,
        String source,
        List<String> options,
        IntFunction<Launch> launch,
        List<Object> reads,
        List<Object> writes,
        List<Object> updates,
        List<Object> scalars)
        implements CudaStep {
    /**
     * One launch of a kernel.
     *
     * @param entryPoint the kernel's name
     * @param group work-items per work-group
     * @param gridX work-groups along x; {@link #ALL_MULTIPROCESSORS} for one per multiprocessor
     * @param gridY work-groups along y
     * @param sharedBytes dynamic shared memory
     */
    public record Launch(String entryPoint, int group, int gridX, int gridY, int sharedBytes) {
        /** Launches nothing. */
        public static final Launch NONE = new Launch("", 0, 0, 0, 0);
    }

    public static final int ALL_MULTIPROCESSORS = -1;

    /** Why a device doesn't run kernels for Hopper; null if it does. */
    public static @Nullable String hopperObstacle(Device device) {
        return obstacle(device, capability -> capability / 10 == 9, "9.x");
    }

    /**
     * Why a device doesn't run kernels for some compute capabilities; null if it does.
     *
     * @param serves whether they run on a compute capability, such as 90 for 9.0
     * @param capabilities the supported capabilities, in words
     */
    public static @Nullable String obstacle(Device device, IntPredicate serves, String capabilities) {
        if (!device.is(Device.CUDA)) {
            return "there are kernels for CUDA only";
        }
        if (TornadoNativeArray.ARRAY_HEADER % 16 != 0) {
            return "arrays have a header of " + TornadoNativeArray.ARRAY_HEADER
                    + " bytes and the kernels read 16 at once" + " (-XX:-UseCompressedClassPointers and the like)";
        }
        try {
            int capability = device.computeCapability();
            return serves.test(capability)
                    ? null
                    : "its compute capability is " + capability / 10 + "." + capability % 10 + " and they are for "
                            + capabilities;
        } catch (RuntimeException | LinkageError failure) {
            return RootCause.of(failure);
        }
    }

    @Override
    public IntArray header() {
        return (IntArray) reads.getFirst();
    }

    /** Its parameters, in order. */
    public List<Object> parameters() {
        return Stream.of(reads, writes, updates, scalars).flatMap(List::stream).toList();
    }
}
