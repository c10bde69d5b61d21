package org.tornadomoe.tornado.device;

import java.util.Locale;
import java.util.Set;
import java.util.concurrent.locks.ReentrantReadWriteLock;
import org.jspecify.annotations.Nullable;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.common.TornadoDevice;
import uk.ac.manchester.tornado.api.enums.TornadoDeviceType;
import uk.ac.manchester.tornado.api.exceptions.TornadoExecutionPlanException;

/** A device and its capabilities. Thread-safe. */
public final class Device {
    /** Read-locked while a layer's plan runs, write-locked while one is closed. */
    private static final ReentrantReadWriteLock PLANS = new ReentrantReadWriteLock(true);

    public static final String CUDA = "CUDA";
    public static final String PTX = "PTX";
    public static final String OPENCL = "OPENCL";
    public static final String INTERPRETER = "JAVA";

    private final String id;
    private final String backend;
    private final String name;
    private final long memory;
    private final int maxGroup;
    private final int capability;
    private final @Nullable TornadoDevice tornado;
    private final Probe context;
    private final Probe dp4a;
    private final Probe int8Mma;
    private final Probe halfMma;
    private final Probe amdMatrixCores;
    private final Probe amdHalves;

    /**
     * @param tornado TornadoVM's own handle
     * @param context finds out whether its own context does its work
     * @param dp4a whether it has the four-way int8 dot product
     * @param mma whether it has tensor cores
     */
    Device(
            String id,
            String backend,
            String name,
            long memory,
            int maxGroup,
            TornadoDevice tornado,
            Probe context,
            Probe dp4a,
            Probe mma) {
        this(
                id,
                backend,
                name,
                memory,
                maxGroup,
                -1,
                tornado,
                context,
                dp4a,
                mma,
                mma,
                Probe.amdMatrixCores(false),
                Probe.amdMatrixCores(true));
    }

    private Device(
            String id,
            String backend,
            String name,
            long memory,
            int maxGroup,
            int capability,
            @Nullable TornadoDevice tornado,
            Probe context,
            Probe dp4a,
            Probe int8Mma,
            Probe halfMma,
            Probe amdMatrixCores,
            Probe amdHalves) {
        this.id = id;
        this.backend = backend;
        this.name = name;
        this.memory = memory;
        this.maxGroup = maxGroup;
        this.capability = capability;
        this.tornado = tornado;
        this.context = context;
        this.dp4a = dp4a;
        this.int8Mma = int8Mma;
        this.halfMma = halfMma;
        this.amdMatrixCores = amdMatrixCores;
        this.amdHalves = amdHalves;
    }

    static Device of(TornadoDevice device, String backend, int index) {
        boolean interpreter = backend.equals(INTERPRETER);
        long limit = interpreter ? Long.MAX_VALUE : memoryLimit(System.getProperty("tornado.device.memory", "4GB"));
        return new Device(
                (interpreter ? "interpreter" : backend.toLowerCase(Locale.ROOT)) + ":" + index,
                backend,
                device.getPhysicalDevice().getDeviceName().trim(),
                Math.min(limit, device.getPhysicalDevice().getDeviceGlobalMemorySize()),
                maxGroup(device, backend),
                -1,
                device,
                new Probe(CudaContexts::give),
                Probe.dp4a(),
                Probe.int8Mma(),
                Probe.halfMma(),
                Probe.amdMatrixCores(false),
                Probe.amdMatrixCores(true));
    }

    /**
     * A device that isn't on this machine, described by a {@link DeviceProfile}: for explanations, not to run anything.
     *
     * @param capability NVIDIA's compute capability, such as 90 for 9.0; 0 for another vendor's GPU
     */
    static Device ofProfile(String id, String backend, String name, long memory, int maxGroup, int capability) {
        boolean nvidias = backend.equals(CUDA) || backend.equals(PTX);
        return new Device(
                id,
                backend,
                name,
                memory,
                maxGroup,
                capability,
                null,
                new Probe(_ -> null),
                new Probe(_ -> nvidias && capability >= 61 ? null : "dp4a is an instruction of PTX from 6.1 on"),
                new Probe(_ -> nvidias && capability >= 80 ? null : "mma.sync with int8 is PTX from 8.0 on"),
                new Probe(_ -> nvidias && capability >= 80 ? null : "mma.sync of 16 halves is PTX from 8.0 on"),
                new Probe(_ -> AmdTarget.lacking(backend.equals(OPENCL), name)),
                new Probe(_ -> AmdTarget.lacking(backend.equals(OPENCL), name)));
    }

    private static int maxGroup(TornadoDevice device, String backend) {
        if (Quirks.reportsGridAsGroup(backend)) {
            return device.getPhysicalDevice().getMaxThreadsPerBlock();
        }
        long[] groups = device.getPhysicalDevice().getDeviceMaxWorkGroupSize();
        return groups == null || groups.length == 0 ? 0 : (int) Math.min(groups[0], Integer.MAX_VALUE);
    }

    /** Parses the property as TornadoVM does: a number, alone or with KB, MB, GB or TB. */
    static long memoryLimit(String size) {
        String digits = size.endsWith("B") ? size.substring(0, size.length() - 1) : size;
        int power = digits.isEmpty() ? -1 : "KMGT".indexOf(digits.charAt(digits.length() - 1)) + 1;
        try {
            return Math.multiplyExact(
                    Long.parseLong(power > 0 ? digits.substring(0, digits.length() - 1) : digits),
                    1L << (10 * Math.max(0, power)));
        } catch (ArithmeticException | NumberFormatException e) {
            throw new IllegalArgumentException(
                    "tornado.device.memory: expected a size such as 40GB, got '" + size + "'", e);
        }
    }

    /** Backend and index within it, as users write it: {@code ptx:0}. */
    public String id() {
        return id;
    }

    /**
     * TornadoVM's name of its backend, {@code PTX}. It is a name because enum constants come and go with versions, and
     * only a name may be absent.
     */
    public String backend() {
        return backend;
    }

    /** Whether it is used through that TornadoVM backend. */
    public boolean is(String aBackend) {
        return backend.equals(aBackend);
    }

    /**
     * Whether layers have been tested on its backend. Layers may run on other backends too: each is checked when it is
     * loaded.
     */
    public boolean isTried() {
        return Set.of(CUDA, PTX, OPENCL, INTERPRETER).contains(backend);
    }

    /** The name that the driver reports. */
    public String name() {
        return name;
    }

    /**
     * Bytes that a layer may use: the device's memory, or TornadoVM's limit ({@code -Dtornado.device.memory}) if that
     * is lower.
     */
    public long memory() {
        return memory;
    }

    /** The maximum work-group size; 0 if the driver doesn't report it. */
    public int maxGroup() {
        return maxGroup;
    }

    /** TornadoVM's own handle. */
    TornadoDevice tornado() {
        if (tornado == null) {
            throw new IllegalStateException(this + " is known by a profile only: it runs nothing");
        }
        return tornado;
    }

    /** NVIDIA's compute capability, such as 90 for 9.0. Only for a device through CUDA. */
    public int computeCapability() {
        return capability >= 0 ? capability : CudaDriver.NVIDIA.computeCapability(index());
    }

    /** Makes a plan run on it. */
    public void selectFor(TornadoExecutionPlan plan) {
        plan.withDevice(tornado());
    }

    /** Its index within its backend. */
    public int index() {
        return Integer.parseInt(id.substring(id.indexOf(':') + 1));
    }

    /** Why it can't be used; null if it can. Call it before the first use. */
    public @Nullable String unusable() {
        return context.problem(this);
    }

    /** Why it can't compute four int8 products and their sum in one instruction, {@code dp4a}; null if it can. */
    public @Nullable String lacksDp4a() {
        String unusable = unusable();
        return unusable != null ? unusable : dp4a.problem(this);
    }

    /** Why it can't multiply int8 matrices on tensor cores; null if it can. */
    public @Nullable String lacksInt8Mma() {
        String unusable = unusable();
        return unusable != null ? unusable : int8Mma.problem(this);
    }

    /** Why it can't multiply half-precision matrices on tensor cores from Java; null if it can. */
    public @Nullable String lacksHalfMma() {
        String unusable = unusable();
        return unusable != null ? unusable : halfMma.problem(this);
    }

    /** Why it can't multiply int8 matrices on AMD's matrix cores; null if it can. */
    public @Nullable String lacksAmdMatrixCores() {
        String unusable = unusable();
        return unusable != null ? unusable : amdMatrixCores.problem(this);
    }

    /** Why it can't multiply half-precision matrices on AMD's matrix cores; null if it can. */
    public @Nullable String lacksAmdHalfMatrixCores() {
        String unusable = unusable();
        return unusable != null ? unusable : amdHalves.problem(this);
    }

    /** Whether it is separate hardware: neither the interpreter nor this machine's CPU through OpenCL. */
    public boolean isBesideTheCpu() {
        return !is(INTERPRETER) && type() != TornadoDeviceType.CPU;
    }

    /** Its rank, lower is better: a GPU before a CPU, then CUDA, PTX, and the rest. */
    public int preference() {
        int kind = type() == TornadoDeviceType.GPU ? 0 : 10;
        return kind + (is(CUDA) ? 0 : is(PTX) ? 1 : 2);
    }

    /** A profile's type is always GPU. */
    private TornadoDeviceType type() {
        return tornado == null ? TornadoDeviceType.GPU : tornado.getDeviceType();
    }

    /** Marks a plan as running until {@link #unlockRunning}; meanwhile none is closed. */
    public static void lockRunning() {
        PLANS.readLock().lock();
    }

    public static void unlockRunning() {
        PLANS.readLock().unlock();
    }

    /**
     * Closes a plan on this device while no layer's plan runs, because TornadoVM may mark the device as {@linkplain
     * Quirks#takeResetBack reset} for them. Call it on the thread that ran the plan.
     */
    public void close(TornadoExecutionPlan plan) throws TornadoExecutionPlanException {
        PLANS.writeLock().lock();
        try {
            if (is(CUDA)) {
                Quirks.close(plan, tornado().getDeviceContext());
            } else {
                plan.close();
            }
        } finally {
            try {
                Quirks.takeResetBack(tornado().getDeviceContext());
            } finally {
                PLANS.writeLock().unlock();
            }
        }
    }

    @Override
    public String toString() {
        return id + " (" + name + ")";
    }
}
