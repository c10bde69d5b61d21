package org.tornadomoe.parallel;

import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.quant.Int8Experts;

/** Loads some of a layer's experts on a device. */
record PartLoader(Sharding sharding, Int8MoeOracle oracle, Int8Experts whole, PartCheck check) {
    MoeKernel load(int rank, int[] experts) {
        Selection selection = sharding.with(rank, experts);
        try (Int8Experts weights = sharding.weights(selection, whole, experts)) {
            MoeKernel kernel = oracle.makeInt8MoeKernel(selection, weights);
            try {
                check.check(kernel, selection.config(), weights);
                return kernel;
            } catch (RuntimeException | Error failure) {
                Cleanup.after(failure, kernel::close);
                throw failure;
            }
        }
    }

    /** The bytes that a device needs for some experts; {@code unknown} if not known in advance. */
    long bytes(int rank, int[] experts, long unknown) {
        Selection selection = sharding.with(rank, experts);
        DeviceMemory memory = selection.experts().memory(selection.config(), whole.weightKey(), whole.activationKey());
        return memory == null ? unknown : memory.bytes();
    }
}
