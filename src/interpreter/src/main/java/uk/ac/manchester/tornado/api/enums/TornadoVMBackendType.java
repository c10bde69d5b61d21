package uk.ac.manchester.tornado.api.enums;

/** The backends that compile and run tasks. */
public enum TornadoVMBackendType {
    OPENCL,
    METAL,
    PTX,
    CUDA,
    SPIRV,
    JAVA,
    VIRTUAL
}
