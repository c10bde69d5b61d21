package org.tornadomoe.tornado;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Objects;
import java.util.ServiceLoader;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.FusedMoeExperts;
import org.tornadomoe.kernel.GeneralExperts;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.StageValues;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tornado.graph.ExpertGemm;
import org.tornadomoe.tornado.graph.LayerShape;
import org.tornadomoe.tornado.graph.MemoryReport;
import org.tornadomoe.tornado.graph.StageRun;
import org.tornadomoe.tornado.kernels.AlignKernels;
import org.tornadomoe.tuning.LaunchConfig;
import org.tornadomoe.tuning.LaunchConfigs;
import org.tornadomoe.tuning.LaunchKey;
import org.tornadomoe.tuning.LaunchSpace;

/**
 * The layer as a TornadoVM task graph on the configuration's device. Subclasses differ in the int8 GEMMs: on tensor
 * cores, with the {@code dp4a} instruction if the device has it, or in scalar arithmetic on any device.
 */
public abstract class TornadoExperts implements GeneralExperts {
    private final ExpertGemm gemm;

    TornadoExperts(ExpertGemm gemm) {
        this.gemm = gemm;
    }

    ExpertGemm gemm() {
        return gemm;
    }

    /** All TornadoVM kernel classes among the services, in the oracle's order. */
    static List<TornadoExperts> all() {
        return ServiceLoader.load(FusedMoeExperts.class, TornadoExperts.class.getClassLoader()).stream()
                .filter(service -> TornadoExperts.class.isAssignableFrom(service.type()))
                .map(service -> (TornadoExperts) service.get())
                .sorted(Comparator.comparingInt(TornadoExperts::order))
                .toList();
    }

    @Override
    public Int8MoeBackend backend() {
        return Int8MoeBackend.TRITON;
    }

    @Override
    public List<String> devices() {
        return TornadoHome.current().devices().stream().map(Device::id).toList();
    }

    @Override
    public @Nullable String devicesNote() {
        return TornadoHome.current().missing();
    }

    @Override
    public String device(FusedMoeConfig config) {
        Device device = TornadoHome.current().find(config.device());
        return device != null ? device.toString() : config.device() != null ? config.device() : "none";
    }

    @Override
    public boolean supportsCurrentDevice(FusedMoeConfig config) {
        return TornadoHome.current().find(config.device()) != null;
    }

    @Override
    public boolean supportsQuantScheme(@Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        Int8Scheme scheme = Int8Scheme.of(weightKey, activationKey);
        return scheme != null && !QuantKey.INT8_STATIC_TOKEN_SYM.equals(activationKey) && gemm.supports(scheme);
    }

    @Override
    public @Nullable String rounding(@Nullable QuantKey weightKey) {
        return Arrays.stream(Int8Scheme.values())
                .filter(scheme -> gemm.supports(scheme) && scheme.weightKey().equals(weightKey))
                .map(gemm::rounding)
                .filter(Objects::nonNull)
                .findFirst()
                .orElse(null);
    }

    @Override
    public List<Support> obstacles(
            FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        TornadoHome home = TornadoHome.current();
        Device device = home.find(config.device());
        List<Support> obstacles = new ArrayList<>();
        if (home.devices().isEmpty()) {
            obstacles.add(Support.no(home.note() == null ? "there is no device" : home.note(), null));
        }
        if (home.kind() == TornadoHome.Kind.SDK && !TornadoHome.bailoutsAreErrors()) {
            obstacles.add(Support.no(
                    "TornadoVM would hide kernels that fail to compile",
                    "start the JVM with -Dtornado.recover.bailout=False"));
        }
        if (device == null) {
            home.broken().forEach((id, cause) -> obstacles.add(Support.no(id + " is broken: " + cause, null)));
            return obstacles;
        }
        String unusable = device.unusable();
        if (unusable != null) {
            obstacles.add(Support.no(device + " can't be used: " + unusable, "device: another"));
            return obstacles;
        }
        Support obstacle = gemm.obstacle(device);
        if (obstacle != null) {
            obstacles.add(obstacle);
        }
        if (config.hasOwnSharedLimit()) {
            obstacles.add(Support.no(
                    "the kernels have one activation limit for all experts, and the shared experts have another",
                    "sharedSwigluLimit: none"));
        }
        if (device.maxGroup() > 0 && device.maxGroup() < AlignKernels.SCAN_GROUP) {
            obstacles.add(Support.no(
                    device + " takes work-groups of at most " + device.maxGroup() + " and the kernels need "
                            + AlignKernels.SCAN_GROUP,
                    "device: one with larger work-groups"));
        }
        Int8Quantization quantization = Int8Quantization.of(weightKey, activationKey);
        if (quantization != null) {
            for (int cols : new int[] {config.hiddenDim(), config.intermediateSizePerPartition()}) {
                int group = quantization.colsPerScale(cols);
                if (group < cols && group % gemm.columnsOfScale() != 0) {
                    obstacles.add(Support.no(
                            "the kernels scale " + gemm.columnsOfScale() + " columns at a time, and " + group
                                    + " share a scale",
                            "columns of a block or group: a multiple of " + gemm.columnsOfScale()));
                    break;
                }
            }
            obstacles.addAll(GeneralExperts.super.obstacles(config, weightKey, activationKey));
            MemoryReport report = memory(config, quantization);
            if (report.bytes() > device.memory()) {
                obstacles.add(Support.noMemory(
                        report.shortage(device.toString(), device.memory()),
                        MemoryReport.MORE_MEMORY,
                        report.bytes(),
                        device.memory()));
            }
        }
        if (config.moeBackend().equals("auto") && config.device() == null && !device.isBesideTheCpu()) {
            obstacles.add(Support.no(
                    device + " runs on the CPU itself, so it is taken only when asked for", "backend: triton"));
        }
        return obstacles;
    }

    @Override
    public @Nullable DeviceMemory memory(
            FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        Int8Quantization quantization = Int8Quantization.of(weightKey, activationKey);
        return quantization == null ? null : memory(config, quantization).memory();
    }

    private MemoryReport memory(FusedMoeConfig config, Int8Quantization quantization) {
        return MemoryReport.of(new LayerShape(config, quantization, config.numLocalExperts(), gemm));
    }

    @Override
    public long memoryLimit(FusedMoeConfig config) {
        return requireDevice(config).memory();
    }

    /**
     * None if batch invariance is asked for, as in vLLM. The names of tuned files contain the device, TornadoVM's
     * backend and the GEMM family.
     */
    @Override
    public @Nullable LaunchSpace launches(
            FusedMoeConfig config, @Nullable QuantKey weightKey, @Nullable QuantKey activationKey) {
        Device device = TornadoHome.current().find(config.device());
        Int8Quantization quantization = Int8Quantization.of(weightKey, activationKey);
        List<LaunchConfig> runnable = gemm.launches();
        if (device == null || quantization == null || runnable.size() < 2 || config.batchInvariant()) {
            return null;
        }
        LaunchKey key = LaunchKey.of(
                config,
                device.name(),
                quantization.scheme().configName(),
                quantization.scheme() == Int8Scheme.W8A8_BLOCK ? quantization.grid() : null,
                device.id().substring(0, device.id().indexOf(':')),
                gemm.name());
        return new LaunchSpace(key, runnable, m -> gemm.byRule(config, m));
    }

    @Override
    public MoeKernel load(FusedMoeConfig config, Int8Experts experts) {
        return TornadoMoeKernel.load(requireDevice(config), config, experts, gemm, launchConfigs(config, experts));
    }

    /** A layer's launch configurations. */
    final LaunchConfigs launchConfigs(FusedMoeConfig config, Int8Experts experts) {
        LaunchSpace launches = launches(config, experts.weightKey(), experts.activationKey());
        return launches == null ? gemm.byRule(config) : launches.find();
    }

    @Override
    public StageValues stages(
            FusedMoeConfig config, Int8Experts experts, float[] hidden, int tokens, StageValues given) {
        return StageRun.run(requireDevice(config), config, experts, gemm, hidden, tokens, given);
    }

    private Device requireDevice(FusedMoeConfig config) {
        Device device = TornadoHome.current().find(config.device());
        if (device == null) {
            throw new IllegalArgumentException("device: expected one of " + devices() + ", got '" + config.device()
                    + "'" + (devicesNote() == null ? "" : ": " + devicesNote()));
        }
        return device;
    }
}
