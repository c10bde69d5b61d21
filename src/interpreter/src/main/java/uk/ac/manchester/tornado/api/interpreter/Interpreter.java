package uk.ac.manchester.tornado.api.interpreter;

import java.util.List;
import java.util.Set;
import uk.ac.manchester.tornado.api.TornadoBackend;
import uk.ac.manchester.tornado.api.TornadoDeviceContext;
import uk.ac.manchester.tornado.api.TornadoRuntime;
import uk.ac.manchester.tornado.api.TornadoTargetDevice;
import uk.ac.manchester.tornado.api.common.TornadoDevice;
import uk.ac.manchester.tornado.api.enums.TornadoDeviceType;
import uk.ac.manchester.tornado.api.enums.TornadoVMBackendType;
import uk.ac.manchester.tornado.api.exceptions.TornadoBackendNotFound;
import uk.ac.manchester.tornado.api.exceptions.TornadoDeviceNotFound;

/** The only backend, with its only device: this JVM. */
public final class Interpreter implements TornadoRuntime, TornadoBackend {
    public static final Interpreter RUNTIME = new Interpreter();
    private static final String NAME = "Kernel interpreter";
    /** The local memory that a work-group can use on common GPUs without a special request. */
    private static final long LOCAL_MEMORY = 48 * 1024;

    private final TornadoDevice device = new Device();

    /**
     * The device's reset mark, as in TornadoVM (5.2 and 6; later each plan has its own): a plan's memory was freed, and
     * plans compiled before are refused until the mark is cleared.
     */
    private volatile boolean reset;

    private Interpreter() {}

    void markReset() {
        reset = true;
    }

    void takeResetBack() {
        reset = false;
    }

    boolean wasReset() {
        return reset;
    }

    private static void checkIndex(int index) {
        if (index != 0) {
            throw new TornadoDeviceNotFound("device: the interpreter has device 0 only, got " + index);
        }
    }

    @Override
    public TornadoBackend getBackend(int index) {
        if (index != 0) {
            throw new TornadoBackendNotFound(
                    "backend: the interpreter is backend 0 and there is no other, got " + index);
        }
        return this;
    }

    @Override
    public void setDefaultBackend(int index) {
        getBackend(index);
    }

    @Override
    public TornadoVMBackendType getBackendType(int index) {
        return getBackend(index).getBackendType();
    }

    @Override
    public <D extends TornadoBackend> D getBackend(Class<D> type) {
        if (!type.isInstance(this)) {
            throw new TornadoBackendNotFound("backend: there is no " + type.getName());
        }
        return type.cast(this);
    }

    @Override
    public int getNumBackends() {
        return 1;
    }

    @Override
    public TornadoDevice getDefaultDevice() {
        return device;
    }

    @Override
    public <D extends TornadoBackend> int getBackendIndex(Class<D> type) {
        getBackend(type);
        return 0;
    }

    @Override
    public boolean isProfilerEnabled() {
        return false;
    }

    @Override
    public boolean isPowerMonitoringEnabled() {
        return false;
    }

    @Override
    public long getPowerMetric() {
        return -1;
    }

    @Override
    public void setDefaultDevice(int index) {
        checkIndex(index);
    }

    @Override
    public int getNumDevices() {
        return 1;
    }

    @Override
    public TornadoDevice getDevice(int index) {
        checkIndex(index);
        return device;
    }

    @Override
    public List<TornadoDevice> getAllDevices() {
        return List.of(device);
    }

    @Override
    public TornadoDeviceType getTypeDefaultDevice() {
        return device.getDeviceType();
    }

    @Override
    public String getName() {
        return NAME;
    }

    @Override
    public int getNumPlatforms() {
        return 1;
    }

    @Override
    public TornadoVMBackendType getBackendType() {
        return TornadoVMBackendType.JAVA;
    }

    private static final class Device implements TornadoDevice, TornadoTargetDevice, TornadoDeviceContext {
        @Override
        public String getDeviceName() {
            return NAME;
        }

        @Override
        public String getDescription() {
            return NAME + " on " + getDeviceInfo();
        }

        @Override
        public String getPlatformName() {
            return NAME + " (Java " + Runtime.version().feature() + ")";
        }

        @Override
        public TornadoDeviceContext getDeviceContext() {
            return this;
        }

        /** Empty: a plan owns all its resources. */
        @Override
        public Set<Long> getRegisteredPlanIds() {
            return Set.of();
        }

        @Override
        public void setResetToFalse() {
            RUNTIME.takeResetBack();
        }

        @Override
        public TornadoTargetDevice getPhysicalDevice() {
            return this;
        }

        @Override
        public TornadoDeviceType getDeviceType() {
            return TornadoDeviceType.CPU;
        }

        @Override
        public long getMaxAllocMemory() {
            return Runtime.getRuntime().maxMemory();
        }

        @Override
        public long getMaxGlobalMemory() {
            return Runtime.getRuntime().maxMemory();
        }

        @Override
        public long getDeviceLocalMemorySize() {
            return LOCAL_MEMORY;
        }

        @Override
        public long[] getDeviceMaxWorkgroupDimensions() {
            return new long[] {Grid.MAX_GROUP, Grid.MAX_GROUP, Grid.MAX_GROUP};
        }

        @Override
        public String getDeviceOpenCLCVersion() {
            return "";
        }

        @Override
        public String getDeviceInfo() {
            return System.getProperty("java.vm.name") + " " + System.getProperty("java.vm.version");
        }

        @Override
        public int getBackendIndex() {
            return 0;
        }

        @Override
        public TornadoVMBackendType getTornadoVMBackend() {
            return TornadoVMBackendType.JAVA;
        }

        @Override
        public boolean isSPIRVSupported() {
            return false;
        }

        @Override
        public long getDeviceGlobalMemorySize() {
            return getMaxGlobalMemory();
        }

        @Override
        public int getDeviceMaxComputeUnits() {
            return Runtime.getRuntime().availableProcessors();
        }

        @Override
        public long[] getDeviceMaxWorkItemSizes() {
            return getDeviceMaxWorkgroupDimensions();
        }

        @Override
        public long[] getDeviceMaxWorkGroupSize() {
            return new long[] {Grid.MAX_GROUP};
        }

        @Override
        public int getMaxThreadsPerBlock() {
            return Grid.MAX_GROUP;
        }

        @Override
        public int getDeviceMaxClockFrequency() {
            return 0;
        }

        @Override
        public long getDeviceMaxConstantBufferSize() {
            return 64 * 1024;
        }

        @Override
        public long getDeviceMaxAllocationSize() {
            return getMaxAllocMemory();
        }

        @Override
        public TornadoTargetDevice getDevice() {
            return this;
        }

        @Override
        public boolean isFP64Supported() {
            return true;
        }

        @Override
        public int getDeviceIndex() {
            return 0;
        }

        @Override
        public int getDevicePlatform() {
            return 0;
        }

        @Override
        public int getDriverIndex() {
            return 0;
        }

        @Override
        public String toString() {
            return NAME;
        }
    }
}
