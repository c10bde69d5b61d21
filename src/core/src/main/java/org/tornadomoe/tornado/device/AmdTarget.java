package org.tornadomoe.tornado.device;

import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/** AMD's architectures, by which ROCm's OpenCL names its devices: {@code gfx942:sramecc+:xnack-}. */
final class AmdTarget {
    /** Architectures for whose matrix cores {@code amd-gemm.cl} has instructions. */
    private static final Pattern MATRIX_CORES = Pattern.compile("gfx(908|90a|94[012]|950|11\\d\\d|12\\d\\d)\\b.*");

    private AmdTarget() {}

    /**
     * Why a device has no supported matrix cores, judging by its name; null if it has.
     *
     * @param opencl whether the device is used through OpenCL
     */
    static @Nullable String lacking(boolean opencl, String device) {
        if (!opencl) {
            return "there are kernels for OpenCL only";
        }
        Matcher name = MATRIX_CORES.matcher(device);
        if (!name.matches()) {
            return "its name is none of gfx908, gfx90a, gfx94x, gfx950, gfx11xx and gfx12xx";
        }
        return TornadoNativeArray.ARRAY_HEADER == 16
                ? null
                : "arrays have a header of " + TornadoNativeArray.ARRAY_HEADER + " bytes and the kernels read at 16"
                        + " (-XX:-UseCompressedClassPointers and the like)";
    }
}
