package uk.ac.manchester.tornado.api;

import java.util.Set;

/** A backend's view of a device. */
public interface TornadoDeviceContext {
    TornadoTargetDevice getDevice();

    boolean isFP64Supported();

    int getDeviceIndex();

    int getDevicePlatform();

    String getDeviceName();

    int getDriverIndex();

    /** The numbers of the plans that have resources on the device. */
    Set<Long> getRegisteredPlanIds();

    void setResetToFalse();
}
