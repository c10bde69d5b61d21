package org.tornadomoe.parallel;

import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Objects;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.cpu.CpuExperts;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.GeneralExperts;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Replicas;
import org.tornadomoe.kernel.Replicated;
import org.tornadomoe.kernel.StageValues;
import org.tornadomoe.quant.Int8Experts;

/** The cores under three other names, as devices that a test can make fail. */
abstract class NamedCores implements GeneralExperts {
    /** What happened on which, in the test's words. */
    final List<String> log = Collections.synchronizedList(new ArrayList<>());

    private final List<String> devices;

    NamedCores(String name) {
        devices = List.of(name + ":0", name + ":1", name + ":2");
    }

    @Override
    public final Int8MoeBackend backend() {
        return Int8MoeBackend.CPU;
    }

    @Override
    public final int order() {
        return 0;
    }

    @Override
    public final List<String> devices() {
        return devices;
    }

    @Override
    public final String device(FusedMoeConfig config) {
        return Objects.requireNonNull(config.device());
    }

    @Override
    public final boolean supportsCurrentDevice(FusedMoeConfig config) {
        return devices.contains(config.device());
    }

    @Override
    public final StageValues stages(
            FusedMoeConfig config, Int8Experts experts, float[] hidden, int tokens, StageValues given) {
        throw new UnsupportedOperationException();
    }

    /** The CPU's, under a device's name. */
    class Kernel implements MoeKernel, Replicated {
        final String name;
        private final MoeKernel kernel;

        Kernel(FusedMoeConfig config, Int8Experts experts) {
            name = NamedCores.this.device(config);
            kernel = new CpuExperts().load(config, experts);
        }

        @Override
        public void forward(
                MemorySegment hidden,
                int tokens,
                MemorySegment output,
                @Nullable ChosenExperts chosen,
                int @Nullable [] slotOfToken) {
            kernel.forward(hidden, tokens, output, chosen, slotOfToken);
        }

        @Override
        public void setReplicas(Replicas replicas) {
            Replicated.of(kernel).setReplicas(replicas);
        }

        @Override
        public int[] expertLoads() {
            return Replicated.of(kernel).expertLoads();
        }

        @Override
        public String device() {
            return name;
        }

        @Override
        public long deviceBytes() {
            return 1;
        }

        @Override
        public void close() {
            kernel.close();
            log.add(name + " closed");
        }
    }
}
