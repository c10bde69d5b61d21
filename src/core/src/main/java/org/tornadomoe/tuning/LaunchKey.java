package org.tornadomoe.tuning;

import java.util.Arrays;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;

/**
 * The key of a launch-configuration file.
 *
 * @param experts the rank's number of experts
 * @param intermediate the rank's part of I
 * @param deviceName as the driver reports it
 * @param dtype {@link org.tornadomoe.config.Int8Scheme#configName}; null if the file name has none
 * @param blockShape rows and columns that share a scale; null for none
 * @param backend the compiler, {@code cuda}; another compiler needs other configurations on the same device. Not in
 *     vLLM's names
 * @param kernel the GEMM family, {@code hopper}; others have other configurations. Not in vLLM's names
 */
public record LaunchKey(
        int experts,
        int intermediate,
        String deviceName,
        @Nullable String dtype,
        @Nullable GroupShape blockShape,
        String backend,
        String kernel) {

    /** The key for a layer on a device. */
    public static LaunchKey of(
            FusedMoeConfig config,
            String deviceName,
            @Nullable String dtype,
            @Nullable GroupShape blockShape,
            String backend,
            String kernel) {
        return new LaunchKey(
                config.numLocalExperts(),
                config.intermediateSizePerPartition(),
                deviceName,
                dtype,
                blockShape,
                backend,
                kernel);
    }

    /**
     * {@code E=8,N=14336,device_name=NVIDIA_H100_80GB_HBM3,dtype=int8_w8a8,backend=cuda,kernel=hopper.json}. A block
     * shape with a zero in it is left out.
     */
    public String fileName() {
        StringBuilder name = new StringBuilder("E=")
                .append(experts)
                .append(",N=")
                .append(intermediate)
                .append(",device_name=")
                .append(fileDeviceName());
        if (dtype != null) {
            name.append(",dtype=").append(dtype);
        }
        if (blockShape != null && blockShape.row() != 0 && blockShape.col() != 0) {
            name.append(",block_shape=[")
                    .append(blockShape.row())
                    .append(',')
                    .append(blockShape.col())
                    .append(']');
        }
        return name.append(",backend=")
                .append(backend)
                .append(",kernel=")
                .append(kernel)
                .append(".json")
                .toString();
    }

    /** Every variant of the H200 has the same name. */
    private String fileDeviceName() {
        String name = deviceName.strip().replaceAll("[\\s/]+", "_");
        return Arrays.asList(name.split("_")).contains("H200") ? "NVIDIA_H200" : name;
    }
}
