package org.tornadomoe.tornado;

import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.tornado.device.Device;

/** The parts of a layer on several CUDA GPUs as one kernel: the GPUs exchange tokens and add the outputs themselves. */
final class JoinedMoeKernel implements MoeKernel {
    private final List<TornadoMoeKernel> parts;
    private final CudaCall call;

    /** Joins parts that have run once. */
    JoinedMoeKernel(List<TornadoMoeKernel> parts) {
        this(parts, new CudaCall(parts));
    }

    JoinedMoeKernel(List<TornadoMoeKernel> parts, CudaCall call) {
        this.parts = parts;
        this.call = call;
    }

    /** Without adapters. */
    @Override
    public void forward(
            MemorySegment hidden,
            int tokens,
            MemorySegment output,
            @Nullable ChosenExperts chosen,
            int @Nullable [] slotOfToken) {
        if (slotOfToken != null) {
            throw new IllegalArgumentException("slotOfToken: expected none of devices that add the output themselves");
        }
        parts.forEach(part -> part.turn().lock());
        Device.lockRunning();
        try {
            call.forward(hidden, tokens, output, chosen);
        } finally {
            Device.unlockRunning();
            parts.forEach(part -> part.turn().unlock());
        }
    }

    @Override
    public String device() {
        return parts.stream().map(TornadoMoeKernel::device).collect(Collectors.joining(", "));
    }

    /** Zero: the memory belongs to the parts, but for 256 KiB of {@link RecordedCall} for each further part. */
    @Override
    public long deviceBytes() {
        return 0;
    }

    @Override
    public void close() {
        call.close();
    }
}
