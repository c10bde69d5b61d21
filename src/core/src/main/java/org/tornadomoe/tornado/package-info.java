/**
 * The TRITON backend: the layer as TornadoVM task graphs. {@link org.tornadomoe.tornado.device.TornadoHome} finds the
 * implementation of TornadoVM's API, {@link org.tornadomoe.tornado.device.Device} describes a device, {@link
 * org.tornadomoe.tornado.graph.LayerArrays} holds a layer's arrays, {@link org.tornadomoe.tornado.graph.LayerProgram}
 * its kernels in order, {@link org.tornadomoe.tornado.TornadoExperts} builds a kernel from them.
 */
@NullMarked
package org.tornadomoe.tornado;

import org.jspecify.annotations.NullMarked;
